"""The fast paths give what mmdet3d's detectors give."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.inference.upload import image_at_focal_length
from apps.driving.models import structures
from apps.driving.models.decoding import (
    CAMERA,
    LIDAR,
    AnchorDecoder,
    CameraDecoder,
    Normalisation,
    suppress,
    suppress_on_device,
)
from apps.driving.models.dense import dense
from apps.driving.models.fast import FastPointPillars, fast_fcos3d
from apps.driving.models.fcos3d import example_image
from apps.driving.models.pillars import ProgramPillars
from apps.driving.recipes import RECIPES
from apps.driving.types import Camera
from shared.deploy.onnx_network import write_onnx
from shared.deploy.programs.program import Program
from shared.deploy.programs.torch_eager import load_eager
from tests import fake_cuda as fakes
from tests.fake_cuda import fake_cuda


def lively(detector):
    """The detector with non-trivial normalisation and a head that detects something."""
    generator = torch.Generator().manual_seed(5)
    for layer in detector.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.1, generator=generator)
    detector.bbox_head.conv_cls.weight.data.normal_(0, 0.05, generator=generator)
    detector.bbox_head.conv_cls.bias.data += 4
    return detector.eval()


def assert_same(expected, found):
    """The boxes are the same; boxes with equal scores may be in another order."""
    boxes, scores, labels = expected
    assert len(scores) == len(found[1]) > 5
    for box, score, label in zip(boxes, scores, labels, strict=True):
        away = (found[0] - box).abs().amax(dim=1) + (found[1] - score).abs() + 10.0 * (found[2] != label)
        assert away.min() < 1e-3


@pytest.mark.parametrize(("max_points", "max_pillars"), [(32, 1024), (3, 1024), (32, 200)])
def test_pointpillars(max_points, max_pillars):
    torch.manual_seed(0)
    recipe = RECIPES["tiny"]()
    detector = lively(recipe.model.build(recipe.input))
    detector.data_preprocessor.voxel_layer.max_num_points = max_points
    detector.data_preprocessor.voxel_layer.max_voxels = (max_pillars, max_pillars)
    sweep = scene(np.random.default_rng(1), sensors=Sensors(azimuth_step_deg=0.5)).points_lidar_m
    points = torch.from_numpy(recipe.input.crop(sweep))
    points[:, 3] = torch.rand(len(points))
    with torch.inference_mode():
        voxels = detector.data_preprocessor(structures.lidar_data([points]), False)["inputs"]["voxels"]
        encoded = detector.voxel_encoder(voxels["voxels"], voxels["num_points"], voxels["coors"])
        canvas = detector.middle_encoder(encoded, voxels["coors"], 1)
        fast = FastPointPillars(detector)
        torch.testing.assert_close(fast.encode(points), canvas, rtol=1e-4, atol=1e-5)
        expected = structures.predict(detector, structures.lidar_data([points]))[0]
        for _ in range(2):
            assert_same(expected, fast.predict(points))


@pytest.mark.parametrize("dynamic", [False, True])
def test_pointpillars_of_a_program_s_weights_alone(dynamic):
    torch.manual_seed(0)
    recipe = RECIPES["tiny"]()
    recipe = replace(recipe, model=replace(recipe.model, points_per_pillar=4000, pillars=(4000, 4000), dynamic=dynamic))
    detector = lively(recipe.model.build(recipe.input))
    program = Program(name="torch", compute=load_eager(dense(recipe, detector)))
    sweep = scene(np.random.default_rng(1), sensors=Sensors(azimuth_step_deg=0.5)).points_lidar_m
    points = torch.from_numpy(recipe.input.crop(sweep))
    points[:, 3] = torch.rand(len(points))
    with torch.inference_mode():
        expected = structures.predict(detector, structures.lidar_data([points]))[0]
        ours = ProgramPillars(recipe.model, recipe.input, detector.state_dict(), program)
        assert_same(expected, ours.predict(points))
        shuffled = points[torch.randperm(len(points))]
        torch.testing.assert_close(ours.encoder(shuffled), ours.encoder(points), rtol=1e-4, atol=1e-5)


def test_headings_all_round_come_back_from_what_mmdet3d_would_have_the_head_say():
    """mmdet3d's targets of a box, including its direction bin, decode to the box."""
    head = RECIPES["tiny"]().model.build(RECIPES["tiny"]().input).bbox_head
    from mmdet3d.models.dense_heads.train_mixins import get_direction_target  # after the stand-in for mmcv's operators

    yaw = torch.linspace(-torch.pi + 0.01, torch.pi - 0.01, 36)
    box = torch.tensor([0.4, -0.3, -1.6, 4.1, 1.7, 1.5, 0.0]).repeat(36, 1)
    box[:, 0] += 10 * torch.arange(36)  # apart, so that none is suppressed
    box[:, 6] = yaw
    for rotation in (0.0, 1.57):
        anchor = box - box.new_tensor([0.4, -0.3, 0.2, 0.2, 0.1, 0.0, 0.0])
        anchor[:, 6] = rotation
        delta = head.bbox_coder.encode(anchor, box)
        turned = get_direction_target(anchor, delta, head.dir_offset, head.dir_limit_offset, one_hot=False)
        turned = torch.nn.functional.one_hot(turned, 2).float()
        maps = (torch.linspace(1, 2, 36)[None], delta.T, turned.T)
        found, _, _ = AnchorDecoder(anchor, 1)(*(values[None, :, None, :] for values in maps))
        order = found[:, 0].argsort()
        away = structures.wrap(found[order, 6] - yaw)
        assert len(found) == 36 and away.abs().max() < 1e-4


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.25)])
def test_fcos3d_of_a_program(scale):
    torch.manual_seed(0)
    recipe = RECIPES["fcos3d_tiny"]()
    detector = lively(recipe.model.build(recipe.input))
    program = Program(name="torch", compute=load_eager(dense(recipe, detector)))
    images = torch.randint(0, 255, (2, 3, 94, 310), dtype=torch.uint8)
    intrinsics = torch.tensor([[180.0, 0, 152], [0, 180, 43], [0, 0, 1]])
    with torch.inference_mode():
        data = structures.camera_data(images, intrinsics.expand(2, 3, 3), scales=[scale] * 2)
        maps = program({"image": recipe.model.colours(list(images))})
        for number, expected in enumerate(structures.predict(detector, data)):
            assert_same(expected, CameraDecoder()(maps, number, intrinsics, scale))


def test_fcos3d_is_exported_in_seconds(tmp_path, monkeypatch):
    """By tracing: torch.export needs a minute. The file takes images of any size in multiples of 32."""
    monkeypatch.setattr(torch.export, "export", None)
    torch.manual_seed(0)
    recipe = RECIPES["fcos3d_tiny"]()
    network = dense(recipe, lively(recipe.model.build(recipe.input)))
    write_onnx(network, tmp_path / "model.onnx")
    image = example_image(128, 192, batch=3)
    found = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"image": image.numpy()})
    for values, expected in zip(found, load_eager(network)({"image": image}).values(), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", ["tiny", "second_stage"])
def test_lidar_networks_are_exported_by_tracing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "export", None)
    recipe = RECIPES[name]()
    network = dense(recipe, recipe.model.build(recipe.input).eval())
    outputs = write_onnx(network, tmp_path / "model.onnx")  # raises an error if the file differs from torch
    assert [*outputs] == [*network.outputs] and all(value.isfinite().all() for value in outputs.values())


def test_fcos3d():
    torch.manual_seed(0)
    recipe = RECIPES["fcos3d_tiny"]()
    detector = lively(recipe.model.build(recipe.input))
    images = torch.randint(0, 255, (2, 3, 94, 310), dtype=torch.uint8)
    intrinsics = torch.tensor([[180.0, 0, 152], [0, 180, 43], [0, 0, 1]]).expand(2, 3, 3)
    fast = fast_fcos3d(detector)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fast.modules())
    with torch.inference_mode():
        expected = structures.predict(detector, structures.camera_data(images, intrinsics))
        for _ in range(2):
            found = structures.predict(fast, structures.camera_data(images, intrinsics))
            for expected_boxes, found_boxes in zip(expected, found, strict=True):
                assert_same(expected_boxes, found_boxes)


def test_an_encoder_of_two_layers_is_not_taken():
    recipe = RECIPES["tiny"]()
    detector = recipe.model.build(recipe.input)
    detector.voxel_encoder.pfn_layers.append(detector.voxel_encoder.pfn_layers[0])
    with pytest.raises(ValueError, match="one layer"):
        FastPointPillars(detector)


class NothingOnTheHost(TorchDispatchMode):
    """Refuses operations that make the host wait for a device: reading a value, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), func
        return func(*args, **(kwargs or {}))


def crowd(seed):
    generator = torch.Generator().manual_seed(seed)
    place, rest = torch.rand(100, 2, generator=generator) * 20, torch.rand(100, 3, generator=generator)
    above_N5 = torch.cat([place, 0.5 + 4 * rest[:, :2], 6 * rest[:, 2:]], dim=1)
    return above_N5, torch.rand(100, 3, generator=generator) ** 2


@pytest.mark.parametrize("overlap", [0.01, 0.3, 0.8])
def test_suppression_on_a_device_keeps_the_same_boxes_and_reads_nothing_back(overlap):
    settings = replace(LIDAR, iou_threshold=overlap, boxes=300)
    for seed in range(3):
        above_N5, score_NC = crowd(seed)
        expected = {(i, label) for i, label in torch.stack(suppress(above_N5, score_NC, settings)).T.tolist()}
        with NothingOnTheHost():
            index, label_of, stays, certain = suppress_on_device(above_N5, score_NC, settings)
        assert certain
        assert {(i, label) for i, label in torch.stack([index[stays], label_of[stays]]).T.tolist()} == expected
        assert on_the_device(above_N5, score_NC, settings) == expected
    assert len(expected) > 10
    with pytest.raises(AssertionError, match="nonzero"), NothingOnTheHost():  # as on the CPU, where it costs nothing
        suppress(above_N5, score_NC, settings)


def on_the_device(above_N5, score_NC, settings):
    with fake_cuda():
        found = suppress(above_N5.to("cuda"), score_NC.to("cuda"), settings)
    return {(i, label) for i, label in torch.stack([tensor.cpu() for tensor in found]).T.tolist()}


@pytest.mark.parametrize("boxes", [20, 500])
def test_of_more_candidates_than_are_compared_the_same_boxes_stay(boxes):
    """Of 1,200 boxes the 512 best are compared. They suffice for 20 boxes; for 500 the others are compared too."""
    generator = torch.Generator().manual_seed(1)
    above_N5 = torch.cat(
        [torch.rand(400, 2, generator=generator) * 30, torch.full((400, 2), 3.0), torch.zeros(400, 1)], 1
    )
    score_NC = 0.2 + 0.8 * torch.rand(400, 3, generator=generator)
    settings = replace(CAMERA, iou_threshold=0.3, boxes=boxes)
    expected = {(i, label) for i, label in torch.stack(suppress(above_N5, score_NC, settings)).T.tolist()}
    assert suppress_on_device(above_N5, score_NC, settings)[3] == (boxes == 20)
    assert on_the_device(above_N5, score_NC, settings) == expected


def test_a_chain_of_boxes_longer_than_the_rounds_is_said_to_be_uncertain():
    """Each box overlaps only the next one, so whether a box stays depends on all before it."""
    row = torch.arange(60.0)
    above_N5 = torch.stack([row, row * 0, row * 0 + 1.9, row * 0 + 1, row * 0], 1)
    score_NC = (1 - row / 100)[:, None]
    settings = replace(LIDAR, iou_threshold=0.2)
    assert not suppress_on_device(above_N5, score_NC, settings)[3]
    assert on_the_device(above_N5, score_NC, settings) == {(number, 0) for number in range(0, 60, 2)}


def test_fcos3d_decoded_on_a_device_gives_the_same_boxes():
    torch.manual_seed(0)
    recipe = RECIPES["fcos3d_tiny"]()
    program = Program(name="torch", compute=load_eager(dense(recipe, lively(recipe.model.build(recipe.input)))))
    images = torch.randint(0, 255, (1, 3, 94, 310), dtype=torch.uint8)
    intrinsics = torch.tensor([[180.0, 0, 152], [0, 180, 43], [0, 0, 1]])
    maps = program({"image": recipe.model.colours(list(images))})
    expected = CameraDecoder()(maps, 0, intrinsics, (1.0, 1.0))
    with fake_cuda():
        found = CameraDecoder()({k: v.to("cuda") for k, v in maps.items()}, 0, intrinsics, (1.0, 1.0))
        found = tuple(part.cpu() for part in found)
    assert len(found[0]) > 20
    assert_same(expected, found)


def test_the_decoders_copy_nothing_that_the_host_would_wait_for(monkeypatch):
    """The host waits for copies from pageable memory, and for an index that is a list, which is copied first."""
    torch.manual_seed(0)
    intrinsics = torch.tensor([[180.0, 0, 152], [0, 180, 43], [0, 0, 1]])
    sizes, channels = {8: (12, 40), 16: (6, 20)}, {"scores": 3, "boxes": 7, "directions": 2, "centerness": 1}
    maps = {f"{n}_{s}": torch.randn(1, c, *size).abs() for s, size in sizes.items() for n, c in channels.items()}
    anchor = AnchorDecoder(torch.rand(8 * 8 * 2, 7), 1)
    heads = [torch.randn(1, count, 8, 8) for count in (2, 14, 4)]
    with fake_cuda() as cuda:
        there, heads = {name: value.to(cuda) for name, value in maps.items()}, [head.to(cuda) for head in heads]
        anchor = replace(anchor, anchors_N7=anchor.anchors_N7.to(cuda))
        images = [torch.rand(3, 64, 64).to(cuda)]
        to = torch.Tensor.to

        def moved(self, *args, **kwargs):
            found = to(self, *args, **kwargs)
            assert kwargs.get("non_blocking") or self.is_cuda or not found.is_cuda, "the host waits for a copy"
            return found

        def made(self, data):
            assert not self.is_cuda, "the host waits for a copy"
            return torch.tensor(data, dtype=self.dtype)

        def index(key):
            assert not any(isinstance(part, list) for part in (key if isinstance(key, tuple) else (key,)))
            return key

        monkeypatch.setattr(torch.Tensor, "to", moved)
        monkeypatch.setattr(torch.Tensor, "new_tensor", made)
        monkeypatch.setattr(fakes, "_wrap_index", index)
        with pytest.raises(AssertionError, match="the host waits"):
            heads[0] + torch.ones(1).to(cuda)
        boxes, *_ = CameraDecoder(strides=tuple(sizes))(there, 0, intrinsics, (0.5, 0.5))
        assert len(boxes) and boxes.is_cuda
        boxes, *_ = anchor(*heads)
        assert len(boxes) and boxes.is_cuda
        assert Normalisation()(images).is_cuda


@pytest.mark.parametrize("focal_px", [180.0, 131.0, 300.0])
def test_a_device_resizes_an_image_as_the_cpu_does(focal_px):
    generator = np.random.default_rng(0)
    image_HWC = generator.integers(0, 256, (94, 310, 3), dtype=np.uint8)
    intrinsics = np.array([[180.0, 0, 152], [0, 180, 43], [0, 0, 1]])
    camera = Camera(image_HWC=image_HWC, intrinsics=intrinsics, lidar_to_camera=np.eye(4))
    here, scale = image_at_focal_length(camera, focal_px, "cpu")
    with fake_cuda():
        there, scale_there = image_at_focal_length(camera, focal_px, "cuda")
        there = there.cpu()
    assert scale == scale_there and here.shape == there.shape
    assert (here.float() - there).abs().max() <= 1
