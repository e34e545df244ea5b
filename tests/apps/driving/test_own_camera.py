"""A camera checkpoint with a user-defined configuration computes what mmdet3d's test computes on the image file."""

import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from apps.driving.app import app
from apps.driving.datasets.synth.scenes import KITTI, scene
from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.imports import IMPORTERS
from apps.driving.predictor import WEIGHTS, DrivingPredictor, Options
from apps.driving.recipes import RECIPES
from apps.driving.types import Camera, CameraInput, Frame
from shared.cli.main import main
from shared.deploy.artifact import open_artifact
from shared.deploy.writing import write_imported
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.driving.own_camera_checkpoints import RAISED, SIZES, mmdet3d_test, own_camera_config
from tests.apps.driving.own_checkpoints import CLASSES, literals, save, shipped, trained

NAMES = [name.lower() for name in CLASSES]
KINDS = ("fcos3d", "pgd", "smoke")
INTRINSICS = np.array([[700, 0, 480], [0, 700, 300], [0, 0, 1]], np.float32)
MOUNT = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module", params=KINDS)
def imported_model(request, tmp_path_factory):
    """The kind, mmdet3d's detector, and the artifact that the import command created from its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = own_camera_config(request.param)
    detector = trained(config, raised=RAISED[request.param])
    path = save(folder / "epoch_80.pth", detector, config.pretty_text)
    assert main(["import", "driving", str(path), "--registry", str(folder)]) == 0
    return request.param, detector, open_artifact(folder / "mmdet3d_camera" / "1")


def photograph():
    """960 x 600 pixels of smooth noise."""
    small = np.random.default_rng(0).integers(0, 256, (30, 48, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((960, 600), Image.Resampling.BICUBIC))
    return Camera(image_HWC=image, intrinsics=INTRINSICS, lidar_to_camera=MOUNT)


def importing(path):
    return IMPORTERS["mmdet3d"].load([str(path)], None)


def test_the_artifact_finds_what_mmdet3ds_test_finds_in_the_images_file(imported_model, tmp_path):
    kind, detector, artifact = imported_model
    boxes, scores, labels = mmdet3d_test(kind, detector, photograph(), tmp_path)
    network = DrivingPredictor.load([artifact], "cpu").detectors["mmdet3d_camera"].network
    with torch.inference_mode():
        found, found_scores, found_labels = network.predict(photograph())
    assert len(found) == len(boxes) > 0
    assert torch.equal(found_labels, labels)
    assert torch.allclose(found_scores, scores, atol=1e-4)
    assert torch.allclose(found[:, :6], boxes[:, :6], atol=1e-2, rtol=1e-3)


def test_the_boxes_of_a_single_camera_are_not_suppressed_again(imported_model):
    """Average precision is computed over mmdet3d's boxes; only those of several cameras may be of the same object."""
    _, _, artifact = imported_model
    detector = DrivingPredictor.load([artifact], "cpu").detectors["mmdet3d_camera"]
    with torch.inference_mode():
        _, scores, _ = detector.network.predict(photograph())
    one, two = (
        detector.detect(Frame(name="a", points_lidar_m=None, cameras={name: photograph() for name in names}))
        for names in (("left",), ("left", "right"))
    )
    assert one.scores == pytest.approx(np.sort(scores.numpy())[::-1], abs=1e-6)
    assert 0 < len(two) < 2 * len(one)


def test_what_was_read_and_what_was_assumed_is_in_the_manifest(imported_model):
    kind, _, artifact = imported_model
    source = artifact.manifest.source
    # SMOKE's sampling positions depend on its features: random weights magnify rounding, in mmdet3d's own modules too.
    tolerance = 1e-3 if kind == "smoke" else 1e-4
    assert source["parity"]["largest_relative_difference"] < tolerance and source["parity"]["maps"] > 0
    text = " ".join(source["read"])
    assert "car, truck, forklift, person" in text and "data set: ForkliftDataset" in text and source["assumed"] == []
    assert {
        "fcos3d": "resized by 0.5; in training Resize had scale=[960, 600], keep_ratio=True strides: 4, 8, 16, 32",
        "pgd": "resized within 640 x 200 pixels; in training Resize had scale=[1242, 375], keep_ratio=True strides: 4",
        "smoke": "640 x 192 pixels, scaled to this width about the centre (AffineResize) strides: 4",
    }[kind] in text
    assert "depths at that of the cameras that it was trained on" in source["remarks"][0]
    settings = artifact.recipe()["recipe"]
    recipe = IMPORTERS["mmdet3d"].recipe(settings)
    assert [(object_class.name, object_class.size_m) for object_class in recipe.input.classes] == [
        (name, (length, width, height)) for name, (length, height, width) in zip(NAMES, SIZES, strict=True)
    ]
    assert recipe.input.focal_px is None and "train_cfg" not in settings["model"]["own_camera"]["model"]


def test_it_is_served_over_http(imported_model, tmp_path):
    _, _, artifact = imported_model
    files = [("files", ("a.png", png(), "image/png")), ("files", ("a.txt", calibration(), "text/plain"))]
    settings = Settings(registry=artifact.path.parent.parent, store=tmp_path / "store", warm=False, workers=0)
    with TestClient(create_app(settings, {"driving": app})) as client:
        response = client.post("/api/driving/predict", files=files, data={"score": "0"})
    assert response.status_code == 200, response.text
    result = response.json()["result"]
    (frame,) = result["frames"]
    assert frame["model"] == "mmdet3d_camera" and frame["boxes"]
    # It has a version like any other model, although mmdet3d's modules compute it rather than a program.
    assert result["versions"] == {"mmdet3d_camera": 1} and "programs" not in result
    assert {box["name"] for box in frame["boxes"]} <= set(NAMES)


def png():
    content = io.BytesIO()
    Image.fromarray(photograph().image_HWC).save(content, "png")
    return content.getvalue()


def calibration():
    """A calibration in KITTI's format of one camera at the position of the LiDAR."""
    camera = np.concatenate([INTRINSICS, np.zeros((3, 1))], axis=1)
    rows = {**{f"P{n}": camera for n in range(4)}, "R0_rect": np.eye(3), "Tr_velo_to_cam": MOUNT[:3]}
    return "".join(f"{name}: {' '.join(map(str, np.ravel(row)))}\n" for name, row in rows.items()).encode()


def test_the_shipped_fcos3d_as_a_checkpoint_of_mmdet3d_finds_the_same_objects(tmp_path):
    """Trained weights find the same as the shipped artifact and as an import, in an image at their focal length."""
    artifact = open_artifact(max((WEIGHTS / "fcos3d").glob("[0-9]*")))
    settings = artifact.recipe()["recipe"]
    recipe = RECIPES["fcos3d_small"]()
    model, camera_input = from_mapping(recipe.model, settings["model"]), from_mapping(CameraInput, settings["input"])
    config = shipped("fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d")
    config.model = model.settings(camera_input)
    config.model.data_preprocessor.bgr_to_rgb = True  # mmdet3d reads files as blue, green, red
    names = [kind.name for kind in camera_input.classes]
    config.test_dataloader.dataset.update(type="OwnDataset", metainfo={"classes": names})
    detector = model.build(camera_input)
    detector.load_state_dict(artifact.weights())
    imported = importing(save(tmp_path / "a.pth", detector, config.pretty_text, classes=names))
    own_artifact = write_imported(app, "mmdet3d", imported, tmp_path / "registry")
    frame = rendered(camera_input.focal_px)
    (ours,), (theirs,) = (
        DrivingPredictor.load([single], "cpu").predict([frame], Options(score=0.3))
        for single in (artifact, own_artifact)
    )
    assert len(ours.boxes) > 0 and ours.boxes.names == theirs.boxes.names
    assert ours.boxes.array == pytest.approx(theirs.boxes.array, abs=2e-2)
    assert ours.boxes.scores == pytest.approx(theirs.boxes.scores, abs=1e-3)


def rendered(focal_px):
    """The image of a synthetic scene, of a focal length in pixels."""
    seen = scene(np.random.default_rng(4), sensors=replace(KITTI, image_scale=focal_px / 721.54))
    (camera,) = seen.cameras.values()
    assert camera.intrinsics[0, 0] == pytest.approx(focal_px, rel=1e-3)
    return replace(seen, points_lidar_m=None)


@pytest.mark.parametrize("kind", ["fcos3d", "pgd"])
def test_nearly_equal_class_scores_do_not_fail_the_comparison(tmp_path, kind):
    """The coder uses the size of each pixel's best class; of two classes with equal scores, either may be the best."""
    config = own_camera_config(kind)
    detector = trained(config, raised=RAISED[kind])
    scores = detector.bbox_head.conv_cls
    scores.weight.data[1] = scores.weight.data[0] * (1 + 1e-7)
    scores.bias.data[1] = scores.bias.data[0]
    imported = importing(save(tmp_path / "a.pth", detector, config.pretty_text))
    assert imported.source["parity"]["largest_relative_difference"] < 1e-4
    assert imported.network.bbox_head.bbox_coder.base_dims == SIZES


@pytest.mark.parametrize(
    "name",
    ["pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d", "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d",
     "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d"],
)  # fmt: skip
def test_a_shipped_configuration_reads_from_its_dump_as_by_its_name(name, tmp_path):
    by_name = MMDet3DModel(config=name)
    detector = by_name.build().eval()
    imported = importing(save(tmp_path / "a.pth", detector, shipped(name).pretty_text, classes=None))
    model = imported.recipe.model
    most = 1e-3 if "smoke" in name else 1e-4
    assert model.sensor == "camera" and imported.source["parity"]["largest_relative_difference"] < most
    assert [kind.name for kind in imported.recipe.input.classes] == [kind.name for kind in by_name.input().classes]
    assert model.own_camera.resize is None and (model.own_camera.affine == (1280, 384, 4)) == ("smoke" in name)


def changed(kind, path, value):
    config = own_camera_config(kind)
    *folders, last = path.split(".")
    settings = config
    for name in folders:
        settings = settings[int(name)] if name.isdigit() else settings[name]
    settings[int(last) if last.isdigit() else last] = value
    return config


@cache
def untrained(kind):
    return trained(own_camera_config(kind))


STEP = "test_dataloader.dataset.pipeline.1"


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("fcos3d", "model.bbox_head.num_classes", 3, "its head has 3 classes; the classes of its data are car,"),
        ("fcos3d", "model.bbox_head.bbox_coder.base_dims", SIZES[:2], "base_dims for 2 classes, but its head has 4"),
        ("fcos3d", "model.bbox_head.bbox_coder.base_dims", 3, "base_dims is 3; expected length, height and width"),
        ("fcos3d", "model.bbox_head", None, "the model has no bbox_head"),
        ("fcos3d", "model.bbox_head.strides", 8, "mmdet3d cannot build|cannot be computed"),
        ("fcos3d", "model.bbox_head.group_reg_dims", (2, 1, 3), "mmdet3d cannot build .* AssertionError"),
        ("fcos3d", "model.backbone.strides", (1, 2, 2, 400), "strides is 400; at most 16"),
        ("fcos3d", "model.backbone.dilations", (1, 1, 1, 400), "dilations is 400; at most 16"),
        ("fcos3d", "model.backbone.type", "mmdet.SwinTransformer", "docs/driving-models.md lists the parts"),
        ("fcos3d", "model.backbone.depth", 101, "far more than the checkpoint|do not match the configuration in it"),
        ("fcos3d", "model.neck.out_channels", 10**8, r"out_channels is 1e\+08; at most 4096"),
        ("fcos3d", STEP, {"type": "Resize3D", "scale": (9, 9)}, "camera network has Resize3D, which does not run"),
        ("fcos3d", STEP, {"type": "Resize", "scale": (9000, 9000)}, "Resize to 9000 x 9000 pixels; images from"),
        ("fcos3d", STEP, {"type": "Resize", "scale_factor": 1e9}, "factors from 0.05 to 4 are supported"),
        ("fcos3d", STEP, {"type": "Resize", "scale": (1, 1), "keep_ratio": True}, "Resize to 1 x 1 pixels"),
        ("fcos3d", STEP, {"type": "Resize", "scale_factor": 1e-9}, "factors from 0.05 to 4 are supported"),
        ("fcos3d", "model.bbox_head.strides", (0, 8, 16, 32), "strides is 0; expected a number of at least 1"),
        ("fcos3d", "model.bbox_head.num_classes", int("9" * 4000), "num_classes is a number of hundreds of digits; at"),
        ("fcos3d", "model.bbox_head.bbox_coder.base_depths", ((1e308, -1.0),), r"base_depths is 1e\+308; at most"),
        ("fcos3d", "model.bbox_head.bbox_coder.base_dims", [[-4, 1, 2]] * 4, "lengths, heights and widths above 0"),
        ("fcos3d", "model.data_preprocessor.pad_size_divisor", 4096, r"pad_size_divisor is 4.1e\+03; at most 256"),
        ("fcos3d", "model.data_preprocessor.mean", [float("nan")] * 3, "mean is nan; expected a number"),
        ("fcos3d", STEP, {"type": "Resize", "scale": "wide"}, "scale of its test pipeline is wide; expected width"),
        ("fcos3d", STEP, {"type": "Resize", "scale_factor": 0.5, "backend": "pillow"}, "only with cv2's bilinear"),
        ("fcos3d", STEP, {"type": "AffineResize", "img_scale": (640, 192), "down_ratio": 4}, "SMOKE's test pipeline"),
        ("fcos3d", "test_dataloader.dataset.type", "WaymoDataset", "needs Waymo's frames"),
        ("fcos3d", "test_dataloader.dataset.pipeline.0.color_type", "grayscale", "only colour images"),
        ("smoke", STEP, {"type": "Resize", "scale_factor": 0.5}, "this SMOKEMono3D has none"),
        ("smoke", STEP, {"type": "AffineResize", "img_scale": (640, 192), "down_ratio": 0}, "has a stride of 0"),
        ("smoke", STEP, {"type": "AffineResize", "img_scale": (1, 1), "down_ratio": 1}, "AffineResize to 1 x 1 pixels"),
        ("smoke", STEP, {"type": "AffineResize", "img_scale": (640, 192), "down_ratio": (4, 8)}, "expected one int"),
        ("smoke", "model.bbox_head.bbox_code_size", 9, "cannot be computed"),
        ("pgd", "model.bbox_head.depth_branch", (), "mmdet3d cannot build"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_with_one_sentence(tmp_path, kind, path, value, message):
    file = save(tmp_path / "a.pth", untrained(kind), literals(changed(kind, path, value)))
    with pytest.raises(InvalidInputError, match=message) as raised:
        importing(file)
    assert len(str(raised.value)) < 1000 and "\n" not in str(raised.value)


def test_only_fcos3d_with_seven_box_values_is_trained_further(imported_model):
    kind, _, artifact = imported_model
    differs = {
        "fcos3d": r"bbox_head\.strides is \[4, 8, 16, 32\], not \[8,",
        "pgd": "bbox_head.type is PGDHead",
        "smoke": "type is SMOKEMono3D",
    }[kind]
    with pytest.raises(InvalidInputError, match=f"{differs}.*Train it in mmdet3d"):
        IMPORTERS["mmdet3d"].fine_tuned(RECIPES["fcos3d_full"](), artifact.recipe()["recipe"])
