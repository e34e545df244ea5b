"""mmdet3d's detectors, built from its shipped configurations, and the conversions around them."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from apps.driving.adapters.projection import to_camera_boxes, to_lidar_boxes
from apps.driving.datasets.images import zoom_and_tilt
from apps.driving.datasets.sweeps import augment_sweep
from apps.driving.models import fcos3d, structures
from apps.driving.models.library import shipped_config
from apps.driving.models.pointpillars import _CONFIG_PATH, PillarsToHeads, PointPillars, example_input
from apps.driving.recipes import RECIPES
from apps.driving.types import Boxes3D, CameraInput, LidarInput

LIDAR_TO_CAMERA = np.array([[0, -1, 0, 0.05], [0, 0, -1, -0.07], [1, 0, 0, -0.27], [0, 0, 0, 1]], np.float32)


def difference(a, b, path=""):
    """The paths at which two nested configurations differ."""
    found = set()
    for key in set(a) | set(b):
        first_value, second_value = a.get(key), b.get(key)
        if isinstance(first_value, dict) and isinstance(second_value, dict):
            found |= difference(first_value, second_value, f"{path}.{key}")
        elif first_value != second_value:
            found.add(f"{path}.{key}")
    return found


def test_full_pointpillars_is_the_shipped_kitti_configuration():
    assert difference(shipped_config(_CONFIG_PATH), PointPillars().settings(LidarInput())) == set()


def test_full_pointpillars_has_the_parameters_of_the_published_model():
    detector = PointPillars().build(LidarInput())
    assert sum(p.numel() for p in detector.parameters()) == 4_834_888
    assert type(detector).__module__ == "mmdet3d.models.detectors.voxelnet"


def test_full_fcos3d_differs_from_the_shipped_configuration_as_it_says():
    changed = difference(shipped_config(fcos3d._CONFIG_PATH), fcos3d.FCOS3D().settings(CameraInput()))
    head = {name.removeprefix(".bbox_head.") for name in changed if name.startswith(".bbox_head.")}
    assert head == {
        "num_classes", "pred_attrs", "pred_velo", "bbox_code_size", "group_reg_dims", "reg_branch",
        "centerness_branch", "bbox_coder.code_size", "dcn_on_last_conv",
    }  # fmt: skip
    assert all(name.startswith((".bbox_head", ".backbone", ".data_preprocessor", ".train_cfg")) for name in changed)


def test_backbones_of_fcos3d_have_the_parameters_of_the_published_ones():
    """ResNeXt-101 as torchvision (32x8d, 88.79 M) and timm (32x4d, 44.18 M) count, less 2.05 M of its classifier."""
    counts = {
        name: sum(p.numel() for p in fcos3d.FCOS3D(backbone=name).build(CameraInput()).backbone.parameters())
        for name in ("resnext101_32x4d", "resnext101_32x8d")
    }
    assert counts == {"resnext101_32x4d": 42_128_704, "resnext101_32x8d": 86_742_336}


def test_fcos3d_with_resnet_101_has_the_configurations_own_backbone_and_head():
    settings = fcos3d.FCOS3D(backbone="resnet101_dcn").settings(CameraInput())
    own = shipped_config(fcos3d._CONFIG_PATH)
    changed = difference(own["backbone"], settings["backbone"])
    assert changed == {".frozen_stages", ".norm_cfg.requires_grad", ".norm_eval", ".init_cfg"}
    assert settings["bbox_head"]["dcn_on_last_conv"] and settings["data_preprocessor"] == own["data_preprocessor"] | {
        "bgr_to_rgb": True
    }
    detector = fcos3d.FCOS3D(backbone="resnet101_dcn").build(CameraInput())
    kinds = {type(module).__name__ for module in detector.backbone.modules()}
    assert "ModulatedDeformConv2dPack" in kinds and all(p.requires_grad for p in detector.parameters())


def test_full_fcos3d_with_resnext_101_runs_forward_and_back_to_boxes():
    torch.manual_seed(0)
    detector = fcos3d.FCOS3D().build(CameraInput()).eval()
    assert detector.backbone.layer3[0].conv2.groups == 32
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    intrinsics = torch.tensor([[[70.0, 0, 48], [0, 70, 32], [0, 0, 1]]])
    with torch.inference_mode():
        boxes, scores, labels = structures.predict(detector, structures.camera_data(images, intrinsics))[0]
    assert boxes.shape[1:] == (7,) and len(boxes) == len(scores) == len(labels)
    assert torch.isfinite(boxes).all()


@pytest.mark.parametrize("name", ["large", "fcos3d_large", "small", "fcos3d_small"])
def test_shipped_weights_stay_under_16_megabytes(name):
    recipe = RECIPES[name]()
    detector = recipe.model.build(recipe.input)
    assert sum(value.numel() * value.element_size() for value in detector.state_dict().values()) < 16e6


def test_dense_networks_give_what_the_detectors_heads_see():
    torch.manual_seed(1)
    tiny = RECIPES["tiny"]()
    detector = tiny.model.build(tiny.input).eval()
    pseudo_image = example_input(tiny.model, tiny.input)
    with torch.inference_mode():
        scores, boxes, directions = PillarsToHeads(detector)(pseudo_image)
        expected = detector.bbox_head(detector.neck(detector.backbone(pseudo_image)))
    assert torch.equal(scores, expected[0][0]) and torch.equal(boxes, expected[1][0])
    assert (scores.shape[1], boxes.shape[1], directions.shape[1]) == (18, 42, 12)
    camera = RECIPES["fcos3d_tiny"]()
    with torch.inference_mode():
        image = fcos3d.example_image(*camera.input.image, 2)
        maps = fcos3d.ImageToHeads(camera.model.build(camera.input).eval())(image)
    assert len(maps) == len(fcos3d.OUTPUTS) == 20
    assert [tuple(m.shape[:2]) for m in maps[:4]] == [(2, 3), (2, 7), (2, 2), (2, 1)]


def test_camera_boxes_survive_the_round_trip():
    generator = np.random.default_rng(0)
    boxes = generator.normal(size=(50, 7)).astype(np.float32) * [30, 10, 1, 1, 1, 1, 1]
    boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.5
    boxes[:, 6] = generator.uniform(-np.pi, np.pi, 50)
    camera = to_camera_boxes(boxes, LIDAR_TO_CAMERA)
    back = to_lidar_boxes(camera, LIDAR_TO_CAMERA)
    np.testing.assert_allclose(back, boxes, atol=1e-4)


def test_camera_boxes_are_those_of_mmdet3d():
    """The corners that mmdet3d computes for a converted box equal the box's corners in the camera's frame."""
    box = np.array([[12.0, 3.0, -0.8, 3.9, 1.6, 1.5, 0.4]], np.float32)
    ours = Boxes3D(centre_lidar_m=box[:, :3], size_m=box[:, 3:6], yaw=box[:, 6], names=("car",))
    expected = ours.corners_lidar_m()[0] @ LIDAR_TO_CAMERA[:3, :3].T + LIDAR_TO_CAMERA[:3, 3]
    boxes = torch.from_numpy(to_camera_boxes(box, LIDAR_TO_CAMERA))
    truth = {
        "boxes_camera": [boxes],
        "labels": [torch.tensor([2])],
        "boxes_2d": [torch.zeros(1, 4)],
        "centres_2d": [torch.zeros(1, 2)],
        "depths": [torch.ones(1)],
    }
    data = structures.camera_data(torch.zeros(1, 3, 8, 8), torch.eye(3)[None], truth)
    corners = data["data_samples"][0].gt_instances_3d.bboxes_3d.corners[0].numpy()
    np.testing.assert_allclose(sorted(map(tuple, corners.round(3))), sorted(map(tuple, expected.round(3))), atol=2e-3)


def test_a_training_step_does_not_fetch_the_intrinsics_from_the_device():
    """A tensor on "meta" has no values, so reading one fails; on a GPU, reading one makes the host wait."""
    none = {
        name: [torch.zeros(0, *shape)]
        for name, shape in (("boxes_camera", (7,)), ("boxes_2d", (4,)), ("centres_2d", (2,)), ("depths", ()))
    }
    none["labels"] = [torch.zeros(0, dtype=torch.long)]
    data = structures.camera_data(torch.zeros(1, 3, 8, 8), torch.empty(1, 3, 3, device="meta"), none)
    assert "cam2img" not in data["data_samples"][0].metainfo


def test_lidar_boxes_are_those_of_mmdet3d():
    box = np.array([[12.0, 3.0, -0.8, 3.9, 1.6, 1.5, 0.4]], np.float32)
    ours = Boxes3D(centre_lidar_m=box[:, :3], size_m=box[:, 3:6], yaw=box[:, 6], names=("car",))
    data = structures.lidar_data([torch.zeros(1, 4)], [torch.from_numpy(box)], [torch.tensor([2])])
    corners = data["data_samples"][0].gt_instances_3d.bboxes_3d.corners[0].numpy()
    expected = ours.corners_lidar_m()[0]
    np.testing.assert_allclose(sorted(map(tuple, corners.round(3))), sorted(map(tuple, expected.round(3))), atol=2e-3)


def test_augmentation_moves_points_and_boxes_alike():
    how = dataclasses.replace(RECIPES["large"]().data.sweeps, most_lost=0.0)
    box = np.array([[15.0, 4.0, -0.9, 4.0, 1.8, 1.5, 0.7]], np.float32)
    ours = Boxes3D(centre_lidar_m=box[:, :3], size_m=box[:, 3:6], yaw=box[:, 6], names=("car",))
    corners = np.hstack([ours.corners_lidar_m()[0], np.arange(8)[:, None]]).astype(np.float32)
    mirrored = set()
    for seed in range(20):
        points, boxes = augment_sweep(corners.copy(), box.copy(), how, np.random.default_rng(seed))
        points = points[np.argsort(points[:, 3]), :3]
        turned = Boxes3D(centre_lidar_m=boxes[:, :3], size_m=boxes[:, 3:6], yaw=boxes[:, 6], names=("car",))
        expected = turned.corners_lidar_m()[0]
        distance = np.linalg.norm(points[:, None] - expected[None], axis=-1)
        assert distance.min(axis=1).max() < 1e-3
        assert sorted(distance.argmin(axis=1)) == list(range(8))
        mirrored.add(bool((distance.argmin(axis=1) != np.arange(8)).any()))
        # The front of the car stays its front.
        assert np.linalg.norm(points[[0, 3]].mean(0) - expected[[0, 3]].mean(0)) < 1e-3
    assert mirrored == {True, False}


def test_an_image_moved_nearer_and_tilted_shows_its_boxes_where_they_are():
    """The boxes' projected centres move with the image's content, and the angle of view does not change."""
    how = dataclasses.replace(RECIPES["fcos3d_small"]().data.images, nearer=0.3, tilt=0.1)
    intrinsics = np.array([[360.0, 0, 305], [0, 360.0, 86], [0, 0, 1]], np.float32)
    for seed in range(10):
        box = np.array([[-4.0, 1.2, 20.0, 3.9, 1.5, 1.6, 0.8]], np.float32)
        moving, camera = box.copy(), intrinsics.copy()
        u, v, _ = (intrinsics @ box[0, :3] / box[0, 2]).tolist()
        image = np.zeros((188, 621, 3), np.uint8)
        cv2.circle(image, (round(u), round(v)), 3, (255, 255, 255), -1)
        boxes_2d = np.array([[u - 20, v - 15, u + 20, v + 15]], np.float32)
        moved_image = zoom_and_tilt(image, camera, moving, boxes_2d, how, np.random.default_rng(seed))
        rows, columns = np.nonzero(moved_image[..., 0] > 100)
        expected = camera @ moving[0, :3] / moving[0, 2]
        assert (columns.mean(), rows.mean()) == pytest.approx(expected[:2].tolist(), abs=1.0)
        assert boxes_2d[0].reshape(2, 2).mean(0) == pytest.approx(expected[:2], abs=1e-3)
        scale = float(boxes_2d[0, 2] - boxes_2d[0, 0]) / 40
        assert moving[0, 2] == pytest.approx(20 / scale) and camera[0, 0] == 360
        np.testing.assert_array_equal(moving[0, [0, 1, 3, 4, 5]], box[0, [0, 1, 3, 4, 5]])
        angle = [b[0, 6] - np.arctan2(b[0, 0], b[0, 2]) for b in (box, moving)]
        assert angle[0] == pytest.approx(angle[1], abs=1e-5)
