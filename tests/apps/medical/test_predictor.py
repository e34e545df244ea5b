"""The predictor's findings on a CT, their files, and the nodule of the real scan."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from apps.medical.adapters.nifti import nifti
from apps.medical.adapters.source import read_volume
from apps.medical.app import app
from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import Grid
from apps.medical.outputs.result import LUNGS_CUT, NO_LUNGS, case_label, result, result_table
from apps.medical.outputs.slab import MAX_VOXELS, slab, slab_file, slab_source
from apps.medical.predictor import ALL_FINDINGS, Options, measure_nodules
from apps.medical.service import MedicalCodec
from apps.medical.types import ChestInput, CTVolume, Nodule, SourceImage
from shared.deploy.predictor import Request, answer
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError
from tests.apps.medical.chests import chest, found

CODEC = MedicalCodec()


def test_a_scan_gives_findings_picture_and_files(untrained, tmp_path):
    file = tmp_path / "chest.nii.gz"
    file.write_bytes(nifti(chest()))
    request = Request(files=(file,), options={"score": "0.01", "most": "4"})
    response = answer(untrained, request, CODEC)
    assert json.loads(json.dumps(response.result)) == response.result
    findings = response.result["findings"]
    assert 1 <= len(findings) <= 4
    assert [finding["rank"] for finding in findings] == list(range(1, len(findings) + 1))
    assert sorted((f["score"] for f in findings), reverse=True) == [f["score"] for f in findings]
    for finding in findings:
        index = chest().to_index_ijk(finding["centre_lps_mm"])
        assert index == pytest.approx(finding["index_ijk"], abs=0.02)
        assert 1 <= finding["slice"] <= 20
        low, high = finding["box_lps_mm"][:3], finding["box_lps_mm"][3:]
        assert np.all(np.less(low, finding["centre_lps_mm"])) and np.all(np.less(finding["centre_lps_mm"], high))
    assert response.result["lungs"]["aerated_ml"] > 500
    assert Image.open(io.BytesIO(response.picture)).format == "PNG"
    assert response.files["findings.csv"].decode().count("\n") == len(findings) + 1
    markups = json.loads(response.files["findings.mrk.json"])["markups"][0]
    assert markups["coordinateSystem"] == "LPS"
    assert markups["controlPoints"][0]["position"] == pytest.approx(findings[0]["centre_lps_mm"], abs=0.01)
    second = answer(untrained, request, CODEC)
    assert second.result == response.result and second.picture == response.picture and second.files == response.files


def test_a_scan_without_lungs_is_reported_as_not_searched(untrained, tmp_path):
    volume = chest()
    voxels = np.where(volume.voxels_zyx == -850, 40, volume.voxels_zyx).astype(np.int16)
    solid = CTVolume(voxels_zyx=voxels, spacing_mm=volume.spacing_mm, origin_lps_mm=volume.origin_lps_mm)
    file = tmp_path / "solid.nii.gz"
    file.write_bytes(nifti(solid))
    response = answer(untrained, Request(files=(file,)), CODEC)
    assert response.result["lungs"] is None
    assert response.result["findings"] == []
    assert response.result["remarks"] == [NO_LUNGS]
    assert response.picture.startswith(b"\x89PNG")


def test_findings_beyond_the_requested_maximum_are_counted(untrained, tmp_path, monkeypatch):
    file = tmp_path / "chest.nii.gz"
    file.write_bytes(nifti(chest()))
    request = Request(files=(file,), options={"score": "0.01", "most": "6"})
    scores = [finding["score"] for finding in answer(untrained, request, CODEC).result["findings"]]
    monkeypatch.setattr(untrained, "operating_score", (scores[4] + scores[5]) / 2)
    assert not any("operating score" in sentence for sentence in answer(untrained, request, CODEC).result["remarks"])
    two = Request(files=(file,), options={"score": "0.01", "most": "2"})
    assert (
        answer(untrained, two, CODEC)
        .result["remarks"][0]
        .startswith("3 more findings reach the operating score than are")
    )


@pytest.mark.parametrize(
    "options", [{"score": "high"}, {"score": "1.5"}, {"most": "0"}, {"most": "1.5"}, {"score": "nan"}, {"scores": "1"}]
)
def test_options_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        CODEC.decode(Request(files=(tmp_path,), options=options))


def test_the_slab_keeps_positions_and_slices():
    volume = chest()
    part = slab(volume, found())
    assert part.size_ijk[2] == 20 and part.size_ijk[0] < 100
    point = [-60.0, 0.0, -355.0]
    i, j, k = np.rint(part.to_index_ijk(point)).astype(int)
    x, y, z = np.rint(volume.to_index_ijk(point)).astype(int)
    assert abs(int(part.voxels_zyx[k, j, i]) - int(volume.voxels_zyx[z, y, x])) <= 2
    assert slab_file(slab_source(volume, found())) == nifti(part), "made later, it is the same to the byte"


def test_the_slab_source_is_smaller_than_the_slab_and_lossless():
    draw = np.random.default_rng(0)
    voxels = np.clip(draw.normal(-800, 60, (24, 96, 80)), -3000, 3000).astype(np.int16)
    voxels[:, :40, ::7] = draw.choice([-3000, -1024, 1016, 1020, 3071, 32767], (24, 40, 12))
    volume = CTVolume(voxels_zyx=voxels, spacing_mm=(1.0, 1.0, 1.0), origin_lps_mm=(0.0, 0.0, 0.0))
    source, expected = slab_source(volume, found(searched=False)), nifti(slab(volume, found(searched=False)))
    assert slab_file(source) == expected and len(source) < 0.9 * len(expected)


def test_a_large_scan_is_downsampled_for_the_viewer():
    large = CTVolume(
        voxels_zyx=np.full((420, 256, 256), -900, np.int16), spacing_mm=(1.0, 1.0, 0.7), origin_lps_mm=(0.0, 0.0, 0.0)
    )
    part = slab(large, found(searched=False))
    assert part.voxels_zyx.size <= MAX_VOXELS
    assert part.spacing_mm[0] == 2.0
    assert part.to_lps_mm([-0.25, -0.25, 0]) == pytest.approx([0, 0, 0])
    assert np.unique(part.voxels_zyx).tolist() == [-900]


def test_the_slab_is_a_nifti_in_the_patient_s_frame():
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti(chest())))
    assert image.affine[:3, 3] == pytest.approx([150, 120, -400])
    assert image.shape == (100, 80, 20)


def test_remarks_mention_thick_slices():
    nodule = Nodule(
        centre_lps_mm=(0.0, 0.0, -350.0), mean_diameter_mm=9.44, score=0.7, box_lps_mm=(-5, -5, -355, 5, 5, -345)
    )
    content = result(chest(), found(nodule, cut=True))
    assert any("5 mm apart" in sentence for sentence in content["remarks"])
    assert LUNGS_CUT in content["remarks"]
    assert content["findings"][0]["above_operating_score"] is True
    assert content["findings"][0]["mean_diameter_mm"] == 9.4


@pytest.mark.realdata
def test_the_real_nodule_alone_is_above_the_operating_score_and_as_large_as_its_mask(medical_data):
    from apps.medical.reproduce import find_real_nodule

    predictor, folder = app.predictor(shipped(app), "cpu"), medical_data / "pyradiomics_lung1"
    place, _ = find_real_nodule(predictor, folder)
    assert place is not None
    rank, measured_mm, true_mm = place
    assert rank == 1 and measured_mm == pytest.approx(true_mm, abs=1.5)
    (findings,) = predictor.predict([read_volume([folder / "lung1_image.nrrd"])])
    above = [nodule.score >= findings.operating_score for nodule in findings.nodules]
    assert above[0] and sum(above) == 1


@pytest.mark.realdata
@pytest.mark.parametrize("cut", [np.s_[:, :, 200:], np.s_[:, 250:, :], np.s_[:, 340:, :], np.s_[:, :, 215:420]])
def test_the_edges_of_a_cropped_image_have_no_marks(cut, medical_data):
    whole = read_volume([medical_data / "pyradiomics_lung1" / "lung1_image.nrrd"])
    first = [part.start or 0 for part in cut]
    part = CTVolume(
        voxels_zyx=np.ascontiguousarray(whole.voxels_zyx[cut]),
        spacing_mm=whole.spacing_mm,
        origin_lps_mm=tuple(whole.to_lps_mm(first[::-1]).tolist()),
        direction=whole.direction,
        name=whole.name,
    )
    found = app.predictor(shipped(app), "cpu").predict([part], Options(min_score=0.3))[0]
    sides = np.array([box for nodule in found.nodules for box in [nodule.box_lps_mm]]).reshape(-1, 2, 3)
    index = part.to_index_ijk(sides)[..., :2]
    reach = (np.minimum(index, np.array(part.size_ijk[:2]) - 1 - index) + 0.5) * part.spacing_mm[:2]
    assert (reach > 1).all()


@pytest.mark.realdata
def test_a_real_scan_below_the_lungs_is_not_searched(untrained, medical_data):
    response = answer(untrained, Request(files=(medical_data / "totalsegmentator" / "example_ct_dicom",)), CODEC)
    assert response.result["findings"] == []
    thick, no_lungs = response.result["remarks"]
    assert thick.startswith("Images are 3 mm thick (SliceThickness) and 2 mm apart") and no_lungs == NO_LUNGS


def test_a_users_own_volume_gives_typed_findings(untrained):
    few, every = (
        untrained.predict([chest()], options)[0] for options in (Options(min_score=0.0, max_findings=2), ALL_FINDINGS)
    )
    assert len(few.nodules) == 2 and few.nodules == every.nodules[:2]
    assert every.lung_millilitres == pytest.approx(few.lung_millilitres)
    assert untrained.predict([chest(), chest()], ALL_FINDINGS) == [every, every]
    assert untrained.predict([chest()]) == untrained.predict([chest()], Options())


def test_findings_are_readable_where_they_are_printed():
    nodule = Nodule(centre_lps_mm=(1.0, -2.5, 3), mean_diameter_mm=9.44, score=0.75, box_lps_mm=(0, 0, 0, 1, 1, 1))
    assert repr(found(nodule)).splitlines() == [
        "1 finding, weak below a score of 0.500",
        "nodule, 9.4 mm, score 0.750, LPS 1.0, -2.5, 3.0 mm",
    ]
    assert str(found(searched=False)) == "not searched: no lung was found"


def test_the_table_has_the_instance_number_for_dicom():
    nodule = Nodule(centre_lps_mm=(1.0, -2.5, 3), mean_diameter_mm=9.44, score=0.75, box_lps_mm=(0, 0, 0, 1, 1, 1))
    content = result(chest(), found(nodule))
    table = result_table(content)
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "rank": "1",
        "slice": "20",
        "x, y, z (LPS mm)": "1.0, -2.5, 3.0",
        "diameter (mm)": "9.4",
        "score": "0.750",
        "": "",
    }
    content["findings"][0]["instance_number"] = 7
    assert result_table(content).columns[:3] == ["rank", "slice", "image"]
    assert result_table(content).rows[0][2] == "7"
    content["findings"][0]["label"] = "solid"
    assert result_table(content).columns[-2:] == ["class", ""] and result_table(content).rows[0][-2] == "solid"
    assert result_table(result(chest(), found())).rows == []


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"spacing_mm": (0.7, 0.0, 1.25)}, "spacing_mm"),
        ({"window_hu": (300.0, -1024.0)}, "window_hu"),
        ({"patch_size": (64, 64, 20)}, "multiples of 16, 16, 8"),
    ],
)
def test_an_invalid_grid_is_refused(grid, words):
    with pytest.raises(InvalidInputError, match=words):
        ChestInput(**grid)


def test_a_scan_with_little_lung_says_so():
    scan = chest()
    little = dataclasses.replace(found(), lung_millilitres=73.2)
    assert any("Only 73 ml of aerated lung" in sentence for sentence in result(scan, little)["remarks"])
    assert not any("aerated lung" in sentence for sentence in result(scan, found())["remarks"])


def test_the_label_of_a_case_has_its_findings_and_the_scans_size():
    nodules = [
        Nodule(centre_lps_mm=(1.0, -2.5, 3), mean_diameter_mm=9.4, score=score, box_lps_mm=(0, 0, 0, 1, 1, 1))
        for score in (0.9, 0.2)
    ]
    assert case_label(result(chest(), found(*nodules))) == "1 finding, 100 × 80 × 20 voxels"
    image = SourceImage(instance_number=1, sop_instance_uid="1.2", position_lps_mm=(0, 0, 0))
    of_dicom = dataclasses.replace(chest(), images=(image,) * 20)
    assert case_label(result(of_dicom, found(*nodules))) == "1 finding, 20 DICOM images"
    assert case_label(result(chest(), found(searched=False))) == "not searched: no lung was found"


def test_box_and_diameter_come_from_the_same_measurement():
    """The mean diameter is that of the two axes, and the box is that of the same mask."""
    scan = chest()
    box = np.array([[[-66.0, -6.0, -360.0]], [[-54.0, 6.0, -350.0]]])
    grid = Grid(scan.to_lps_mm([99, 79, 0]), np.array(scan.spacing_mm), (100, 80, 20))
    corners = np.sort(grid.to_voxels(box), axis=0).reshape(1, 6)
    marks = Candidates(torch.zeros(1, 1, 1), grid, corners, np.array([0.8]), np.array([0]))
    (nodule,) = measure_nodules(scan, marks, ChestInput())
    assert nodule.axes_mm is not None and nodule.mean_diameter_mm == pytest.approx(np.mean(nodule.axes_mm))
    sides = np.subtract(nodule.box_lps_mm[3:], nodule.box_lps_mm[:3])
    # The chest's nodule has 4 by 4 by 2 voxels of 3 by 3 by 5 mm.
    assert sides == pytest.approx((12, 12, 10), abs=0.1)
    assert nodule.box_lps_mm[:3] == pytest.approx(scan.to_lps_mm([27.5, 37.5, 8.5]))
    assert result(scan, found(nodule))["findings"][0]["axes_mm"] == [round(axis, 1) for axis in nodule.axes_mm]
