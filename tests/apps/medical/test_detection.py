"""The fast path against MONAI's own, and the task on MONAI's losses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.medical.inference import candidates
from apps.medical.inference.candidates import suppress_nested
from apps.medical.inference.lungs import find_lungs
from apps.medical.inference.marks import suppress
from apps.medical.inference.pipeline import detect
from apps.medical.inference.tiles import Tile, Tiling
from apps.medical.models.boxes import BoxDecoder, decode
from apps.medical.models.classifier import CandidateClassifier
from apps.medical.models.dense import dense_classifier, dense_network, fold_batch_norm
from apps.medical.models.retinanet import RetinaNet3D, full
from apps.medical.task import DetectionTask
from apps.medical.types import ChestInput
from shared.deploy.onnx_network import write_onnx
from tests.apps.medical.chests import body_with_lungs

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning",
    "ignore:.*scan_interval.*:UserWarning",
)


UNITS = (16, 16, 8)
"""The detector's strides."""


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    retinanet = RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=8, stem=3).build(ChestInput()).eval()
    # Spreads the scores, since those of an untrained network are nearly equal.
    torch.nn.init.normal_(retinanet.network.classification_head.cls_logits.weight, std=0.08)
    torch.nn.init.normal_(retinanet.network.regression_head.bbox_reg.weight, std=0.03)
    return retinanet


def labelled(batch):
    """The batch with every box of the first class, on the default grid."""
    labels = [torch.zeros(len(boxes), dtype=torch.long) for boxes in batch["boxes"]]
    return batch | {"labels": labels, "spacing_mm": ChestInput().spacing_mm}


def assert_same(ours, theirs):
    """The boxes and scores are equal. Neighbours whose scores differ only by rounding may be in another order."""
    scores, boxes = theirs["label_scores"], theirs["box"]
    torch.testing.assert_close(ours.scores, scores, rtol=0, atol=1e-5)
    apart = (ours.boxes[:, None] - boxes[None]).abs().amax(dim=2)
    # One box may occur in several classes.
    partner = (apart + 1e3 * (ours.labels[:, None] != theirs["label"][None])).argmin(dim=1)
    assert sorted(partner.tolist()) == list(range(len(boxes)))
    torch.testing.assert_close(ours.boxes, boxes[partner], rtol=0, atol=2e-3)
    assert torch.equal(ours.labels, theirs["label"][partner])
    torch.testing.assert_close(ours.scores, scores[partner], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 96, 48), (130, 111, 61)])
def test_tiles_give_the_results_of_monai_s_sliding_window(detector, shape):
    torch.manual_seed(1)
    image = torch.rand(shape)
    tiling = Tiling(size=(96, 96, 48), margin=(16, 16, 8))
    ours = detect(detector, image, tiling.tiles(shape, UNITS), batch=3)
    detector.set_sliding_window_inferer(roi_size=tiling.size, overlap=1 / 6, sw_batch_size=1, mode="constant")
    with torch.no_grad():
        theirs = detector(image[None, None], use_inferer=True)[0]
    assert len(ours.scores) > 20
    assert_same(ours, theirs)


def test_one_tile_gives_the_results_of_the_detector_itself(detector):
    image = torch.rand(64, 64, 32, generator=torch.Generator().manual_seed(2))
    ours = detect(detector, image, [Tile((0, 0, 0), (64, 64, 32))])
    with torch.no_grad():
        theirs = detector(image[None, None])[0]
    assert_same(ours, theirs)


def test_the_settings_decoder_equals_that_of_the_detector_they_build(detector):
    settings = RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=8, stem=3)
    of_settings, of_detector = BoxDecoder.of_settings(settings), BoxDecoder.of_detector(detector)
    assert all(
        torch.equal(first, second) for first, second in zip(of_settings.anchors, of_detector.anchors, strict=True)
    )
    for name in ("score_threshold", "overlap", "candidates", "detections"):
        assert getattr(of_settings, name) == getattr(of_detector, name)
    assert list(of_settings.size_divisible) == list(of_detector.size_divisible)
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(50, 3, generator=generator) * 40
    anchors = torch.cat([anchors, anchors + 1 + torch.rand(50, 3, generator=generator) * 9], dim=1)
    codes = torch.randn(50, 6, generator=generator) * 3
    torch.testing.assert_close(decode(codes, anchors), detector.box_coder.decode_single(codes, anchors))


def test_several_classes_are_handled_as_in_monai():
    torch.manual_seed(0)
    grid = ChestInput(classes=("ground glass", "solid", "part-solid"))
    retinanet = RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=8, stem=3).build(grid).eval()
    torch.nn.init.normal_(retinanet.network.classification_head.cls_logits.weight, std=0.08)
    image = torch.rand(64, 64, 32, generator=torch.Generator().manual_seed(2))
    ours = detect(retinanet, image, [Tile((0, 0, 0), (64, 64, 32))])
    with torch.no_grad():
        theirs = retinanet(image[None, None])[0]
    assert set(ours.labels.tolist()) == {0, 1, 2}
    assert_same(ours, theirs)


def test_folding_batch_normalisation_changes_no_finding(detector):
    network = fold_batch_norm(detector)
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())
    assert any(isinstance(module, torch.nn.BatchNorm3d) for module in detector.modules())
    image = torch.rand(130, 96, 61, generator=torch.Generator().manual_seed(5))
    tiles = Tiling(size=(96, 96, 48), margin=(16, 16, 8)).tiles(image.shape, UNITS)
    plain, fast = detect(detector, image, tiles), detect(detector, image, tiles, network=network)
    assert len(plain.scores) > 20
    assert_same(fast, {"box": plain.boxes, "label_scores": plain.scores, "label": plain.labels})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_networks_are_exported_in_seconds(detector, tmp_path, monkeypatch):
    """By tracing: torch.export takes seven to fifteen times as long. The files take other sizes than the examples."""
    monkeypatch.setattr(torch.export, "export", None)
    settings = CandidateClassifier(channels=4, hidden=8)
    second_stage = dense_classifier(settings, settings.build(ChestInput()))
    image, known = torch.rand(3, 2, *settings.size), torch.randn(3, 2)
    for network, inputs in (
        (dense_network(detector), {"image": torch.rand(1, 1, 96, 48, 24)}),
        (second_stage, {"image": image, "known": known}),
    ):
        write_onnx(network, tmp_path / "model.onnx")
        session = ort.InferenceSession(tmp_path / "model.onnx")
        found = session.run(list(network.outputs), {name: value.numpy() for name, value in inputs.items()})
        with torch.inference_mode():
            expected = network.module(*inputs.values())
        for values, tensor in zip(found, [expected] if torch.is_tensor(expected) else expected, strict=True):
            np.testing.assert_allclose(values, tensor, rtol=1e-3, atol=1e-4)


@given(st.tuples(*[st.integers(16, 500)] * 3))
def test_fitted_tiles_cover_the_image_without_more_tiles(image):
    whole = Tiling()
    tiling = whole.fitted(image, UNITS)
    padded = [max(-(-n // unit) * unit, tile) for n, unit, tile in zip(image, UNITS, tiling.size, strict=True)]
    starts = [tile.start for tile in tiling.tiles(image, UNITS)]
    assert len(starts) <= len(whole.tiles(image, UNITS))
    for axis, unit in enumerate(UNITS):
        places = sorted({start[axis] for start in starts})
        assert tiling.size[axis] <= whole.size[axis] and all(place % unit == 0 for place in places)
        assert places[0] == 0 and places[-1] + tiling.size[axis] == padded[axis] >= image[axis]
        assert all(b - a <= tiling.size[axis] - whole.margin[axis] for a, b in pairwise(places))


def test_tiles_without_needed_blocks_are_left_out():
    needed = np.zeros((20, 20, 12), bool)
    tiling, units = Tiling(size=(64, 64, 32), margin=(16, 16, 8)), np.array(UNITS)
    assert tiling.covering(needed, UNITS) == []
    needed[3, 4, 2] = needed[18, 17, 10] = True
    tiles = tiling.covering(needed, UNITS)
    everything = tiling.covering(np.ones_like(needed), UNITS)
    assert 2 <= len(tiles) < len(everything) and {tile.size for tile in tiles} == {everything[0].size}
    for block in np.argwhere(needed):
        low, high = block * units, (block + 1) * units
        assert any((low >= tile.start).all() and (high <= np.add(tile.start, tile.size)).all() for tile in tiles)


def test_regions_outside_all_tiles_give_no_findings(detector):
    image = torch.rand(128, 64, 32, generator=torch.Generator().manual_seed(3))
    found = detect(detector, image, [Tile((0, 0, 0), (64, 64, 32))])
    assert len(found.scores)
    assert found.boxes[:, 0].max() < 64 + 24
    assert not len(detect(detector, image, []).scores)


def test_tiles_of_several_sizes_are_merged_like_tiles_of_one_size(detector):
    """The network is called with each tile separately, and overlapping outputs are averaged."""
    image = torch.rand(128, 64, 32, generator=torch.Generator().manual_seed(3))
    first, second = Tile((0, 0, 0), (80, 64, 32)), Tile((64, 0, 0), (64, 64, 32))
    both = detect(detector, image, [first, second])
    left, right = (detect(detector, image, [tile]) for tile in (first, second))

    def far_from_the_seam(found, low, high):
        middle = (found.boxes[:, 0] + found.boxes[:, 3]) / 2
        return {round(float(s), 4) for s, x in zip(found.scores, middle, strict=True) if low <= x < high}

    assert len(far_from_the_seam(both, 0, 40)) > 3
    assert far_from_the_seam(both, 0, 40) <= far_from_the_seam(left, 0, 40)
    assert far_from_the_seam(both, 100, 128) <= far_from_the_seam(right, 100, 128)


def test_one_image_gives_the_same_maps_as_in_a_batch_of_two(detector):
    network, image = fold_batch_norm(detector), torch.rand(2, 1, 64, 64, 32)
    with torch.inference_mode():
        for alone, together in zip(network(image[:1]), network(image), strict=True):
            torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)


def test_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = torch.tensor([[0, 0, 0, 10, 10, 10], [1, 0, 0, 11, 10, 10], [30, 0, 0, 40, 10, 10], [0, 0, 0, 10, 10, 10]])
    indices = suppress(boxes.float(), torch.tensor([0.5, 0.9, 0.3, 0.5]), 0.22, 10)
    assert indices.tolist() == [1, 2]
    assert suppress(boxes.float(), torch.tensor([0.5, 0.9, 0.3, 0.5]), 0.22, 1).tolist() == [1]
    assert suppress(torch.zeros(0, 6), torch.zeros(0), 0.22, 5).tolist() == []


def test_a_nodule_gets_one_mark():
    low = np.array([[0.0, 0, 0], [2, 2, 2], [-20, -20, -20], [30, 0, 0]])
    high = np.array([[10.0, 10, 10], [5, 5, 5], [25, 25, 25], [40, 10, 10]])
    assert suppress_nested(low, high, np.arange(4)) == [0, 3]
    assert suppress_nested(low, high, np.array([1, 3])) == [1, 3]


def test_the_full_recipe_has_the_bundle_s_network():
    """MONAI's own builder, as the bundle calls it, has the same tensors by name."""
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.nets.resnet import resnet50

    with torch.device("meta"):
        ours = full().build(ChestInput()).network
        backbone = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=(2, 2, 1), conv1_t_size=(7, 7, 7))
        pyramid = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)
        bundle = RetinaNet(3, num_classes=1, num_anchors=3, feature_extractor=pyramid, size_divisible=[16, 16, 8])
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in bundle.state_dict().items()
    }
    assert ours.size_divisible == bundle.size_divisible
    assert sum(p.numel() for p in ours.parameters()) / 1e6 == pytest.approx(20.9, abs=0.1)


def test_the_losses_of_a_batch_are_the_weighted_means_of_its_images_losses():
    # All negatives of the pool are used, so that the loss is deterministic.
    detector = RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=8, stem=3, pool_size=1.0).build(ChestInput()).train()
    for layer in detector.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eval()
    task = DetectionTask().build()
    image = torch.rand(2, 1, 64, 64, 32, generator=torch.Generator().manual_seed(4))
    boxes = [torch.tensor([[20.0, 20, 8, 32, 32, 16], [40, 40, 8, 52, 50, 14]]), torch.zeros(0, 6)]
    whole = task.loss(detector, labelled({"image": image, "boxes": boxes}))
    parts = [task.loss(detector, labelled({"image": image[n : n + 1], "boxes": boxes[n : n + 1]})) for n in range(2)]
    for name, mean in whole.items():
        assert mean.weight == sum(part[name].weight for part in parts)
        assert parts[0][name].weight > parts[1][name].weight
        together = sum(part[name].mean.item() * part[name].weight for part in parts) / mean.weight
        assert together == pytest.approx(mean.mean.item(), rel=1e-4)


def test_the_weights_of_the_losses_are_known_before_the_forward_pass(detector):
    task = DetectionTask().build()
    task.prepare(detector)
    detector.train()
    image = torch.rand(3, 1, 80, 64, 32, generator=torch.Generator().manual_seed(4))
    crowd = torch.tensor([[x, y, 8.0, x + 9, y + 8, 14] for x in (4.0, 30, 60) for y in (4.0, 24, 44)])
    boxes = [torch.tensor([[20.0, 20, 8, 32, 32, 16]]), torch.zeros(0, 6), crowd]
    batch = labelled({"image": image, "boxes": boxes})
    losses = task.loss(detector, batch)
    assert task.count(batch) == {name: loss.weight for name, loss in losses.items()}
    assert task.count(batch)["boxes"] > 19
    detector.eval()


def test_training_works_on_an_image_without_nodules(detector):
    task = DetectionTask().build()
    detector.train()
    image = torch.rand(2, 1, 64, 64, 32, generator=torch.Generator().manual_seed(4))
    none = torch.zeros(0, 6)
    losses = task.loss(detector, labelled({"image": image, "boxes": [none, none]}))
    assert set(losses) == {"classification", "boxes"} and all(torch.isfinite(v.mean) for v in losses.values())
    box = torch.tensor([[20.0, 20, 8, 32, 32, 16]])
    losses = task.loss(detector, labelled({"image": image, "boxes": [box, none]}))
    assert losses["boxes"].mean > 0
    detector.eval()
    batch = labelled({"image": image, "boxes": [box, none]})
    scores = task.scores()
    task.evaluate(detector, batch, scores)
    other_scores = task.scores()
    task.evaluate(detector, batch, other_scores)
    assert scores.summary() == other_scores.summary()
    scores.merge(other_scores)
    assert scores.patches == 4 and len(scores.truths) == 2
    assert scores.summary()["loss"] == pytest.approx(other_scores.summary()["loss"])


def test_a_second_pass_finds_nodules_that_are_too_large_for_the_first(detector):
    """An untrained detector marks boxes of the anchors' sizes; a second pass adds larger ones."""
    volume = body_with_lungs()
    lungs = find_lungs(volume)
    twice = ChestInput(spacing_mm=(2.8, 2.8, 5.0), second_look=2)
    tiling = Tiling(size=(64, 64, 32), margin=(16, 16, 8))
    one_look = candidates.find_candidates(
        detector, volume, lungs, input=ChestInput(spacing_mm=(2.8, 2.8, 5.0)), tiling=tiling
    )
    two_looks = candidates.find_candidates(detector, volume, lungs, input=twice, tiling=tiling)
    size_one, size_two = ((c.boxes[:, 3:5] - c.boxes[:, :2]).max() for c in (one_look, two_looks))
    assert size_two > 1.15 * size_one
    low, high = two_looks.ends_lps_mm()
    assert np.all(high > low) and np.all(two_looks.scores[:-1] >= two_looks.scores[1:])
