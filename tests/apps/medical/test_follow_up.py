"""Follow-up of a scan against an earlier one: alignment, matching of findings, and their changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from fastapi.testclient import TestClient
from scipy.ndimage import map_coordinates

from apps.medical.adapters.nifti import nifti
from apps.medical.adapters.source import read_volume
from apps.medical.app import app
from apps.medical.datasets.synth.phantom import volume as phantom_volume
from apps.medical.inference.follow_up import MatchedFinding, MeasuredFinding, match_findings
from apps.medical.inference.lungs import find_lungs
from apps.medical.inference.registration import Alignment, align
from apps.medical.inference.same_vessels import vessel_correlation
from apps.medical.outputs import comparison
from apps.medical.samples import PHANTOM_SEED
from apps.medical.types import CTVolume, Float64, Nodule
from shared.cli import main
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.cases import CaseStore
from shared.store.records import Outputs

TURNED = np.array([[0.9976, -0.0698, 0.0], [0.0698, 0.9976, 0.0], [0.0, 0.0, 1.0]])
"""Four degrees around the body's axis."""

BREATH_MM = 12.0


@pytest.fixture(scope="module")
def chest() -> tuple[CTVolume, list[Nodule]]:
    """The phantom of the samples with larger voxels, and its nodules."""
    random = np.random.default_rng(PHANTOM_SEED)
    return phantom_volume(random, spacing_mm=(1.6, 1.6, 4.0), nodules=4, diameters_mm=(7, 22))


@pytest.fixture(scope="module")
def earlier(chest: tuple[CTVolume, list[Nodule]]) -> CTVolume:
    return chest[0]


@pytest.fixture(scope="module")
def later(earlier: CTVolume) -> CTVolume:
    """The same chest, rotated and after exhalation, in thinner slices and at another position in the scanner."""
    chest_later = CTVolume(
        voxels_zyx=np.zeros((100, *earlier.voxels_zyx.shape[1:]), np.int16),
        spacing_mm=(1.6, 1.6, 3.0),
        origin_lps_mm=(earlier.origin_lps_mm[0] + 15, earlier.origin_lps_mm[1] - 20, 120.0),
    )
    k, j, i = np.indices(chest_later.voxels_zyx.shape)
    places = place_before(chest_later.to_lps_mm(np.stack([i, j, k], -1).reshape(-1, 3)), earlier)
    index = earlier.to_index_ijk(places)[:, ::-1].T
    values = map_coordinates(earlier.voxels_zyx, index, np.int16, order=1, cval=-1000).reshape(i.shape)
    noise = np.random.default_rng(0).normal(0, 20, i.shape)
    chest_later.voxels_zyx[:] = np.clip(values + noise, -1024, 2000)
    return chest_later


def place_before(places: Float64, earlier: CTVolume) -> Float64:
    """Maps positions in ``later`` to positions in ``earlier``."""
    middle = earlier.to_lps_mm((np.array(earlier.size_ijk) - 1) / 2)
    moved = (places - [15.0, -20.0, 120.0 - earlier.origin_lps_mm[2]] - middle) @ TURNED.T + middle
    height = (moved[:, 2] - earlier.origin_lps_mm[2]) / (earlier.size_ijk[2] * earlier.spacing_mm[2])
    moved[:, 2] += BREATH_MM * (1 - height) ** 2
    return np.asarray(moved)


def lung_box(volume: CTVolume) -> Float64:
    lungs = find_lungs(volume)
    assert lungs is not None
    ends = volume.to_lps_mm([lungs.low_ijk, np.array(lungs.high_ijk) - 1])
    return np.concatenate([ends.min(axis=0), ends.max(axis=0)])


def test_alignment_follows_another_position_and_another_breath(earlier: CTVolume, later: CTVolume) -> None:
    found = align(later, lung_box(later), earlier, lung_box(earlier))
    lungs = find_lungs(later)
    assert lungs is not None
    box = lung_box(later)
    places = np.random.default_rng(1).uniform(box[:3], box[3:], (500, 3))
    places = places[lungs.contain(later.to_index_ijk(places))]
    true = place_before(places, earlier)
    error = np.linalg.norm(found.transform_points(places) - true, axis=1)
    unmoved = np.linalg.norm(places - true, axis=1)
    assert np.median(unmoved) > 50
    assert np.median(error) < 2.5 and np.percentile(error, 90) < 8
    assert found.correlation > 0.95
    back = np.linalg.norm(found.inverse_transform_points(true) - places, axis=1)
    assert np.median(back) < 3


def part(volume: CTVolume, first: int, end: int) -> CTVolume:
    """The slices of a volume from ``first`` up to, but not including, ``end``."""
    x, y, z = volume.to_lps_mm([0, 0, first]).tolist()
    return replace(volume, voxels_zyx=volume.voxels_zyx[first:end], origin_lps_mm=(x, y, z))


@pytest.mark.parametrize("share", [(0.0, 0.6), (0.35, 1.0)], ids=["the bases", "the apices"])
def test_a_scan_of_a_part_of_the_lungs_is_aligned_to_that_part(
    earlier: CTVolume, later: CTVolume, share: tuple[float, float]
) -> None:
    """A CT of the abdomen shows the bases, one of the neck the apices; the other scan shows the whole lungs."""
    ends = [round(fraction * later.size_ijk[2]) for fraction in share]
    cut = part(later, ends[0], ends[1])
    lungs = find_lungs(cut)
    assert lungs is not None
    box = lung_box(cut)
    places = np.random.default_rng(1).uniform(box[:3], box[3:], (500, 3))
    places = places[lungs.contain(cut.to_index_ijk(places))]
    true = place_before(places, earlier)
    found = align(cut, box, earlier, lung_box(earlier))
    assert np.median(np.linalg.norm(found.transform_points(places) - true, axis=1)) < 2.5 and found.correlation > 0.95
    back = align(earlier, lung_box(earlier), cut, box)
    assert np.median(np.linalg.norm(back.transform_points(true) - places, axis=1)) < 3.5 and back.correlation > 0.95


def sized(rank: int, x: float, diameter: float, volume: float | None = None, *, above: bool = True) -> MeasuredFinding:
    return MeasuredFinding(
        rank=rank, centre_lps_mm=(x, 0.0, 0.0), mean_diameter_mm=diameter, volume_mm3=volume, is_above=above
    )


@pytest.fixture(scope="module")
def shifted() -> Alignment:
    """The earlier scan is 100 mm to the left of the later one."""
    return Alignment(SimpleITK.TranslationTransform(3, (100.0, 0.0, 0.0)), 1.0)


def test_each_finding_is_matched_to_the_one_at_its_position(shifted: Alignment) -> None:
    now = [sized(1, 0, 10), sized(2, 50, 6), sized(3, 200, 5), sized(4, 300, 6)]
    before = [sized(1, 152, 5.8), sized(2, 103, 8.4), sized(3, 500, 7), sized(4, 400, 7.6)]
    followed, gone = match_findings(now, before, shifted)
    pairs = [(match.finding.rank, match.earlier.rank if match.earlier else None, match.change) for match in followed]
    assert pairs == [(1, 2, "larger"), (2, 1, "stable"), (3, None, "new"), (4, 4, "smaller")]
    assert followed[0].place_lps_mm == (100, 0, 0) and followed[0].distance_mm == 3
    assert [match.earlier.rank for match in gone] == [3]
    assert gone[0].place_lps_mm == pytest.approx((400, 0, 0), abs=0.1)


def test_neighbouring_findings_are_matched_by_size(shifted: Alignment) -> None:
    followed, gone = match_findings([sized(1, 0, 12), sized(2, 7, 4)], [sized(1, 103, 4), sized(2, 104, 12)], shifted)
    assert [match.earlier and match.earlier.rank for match in followed] == [2, 1] and not gone


@pytest.mark.parametrize("now, before", [([], []), ([], [1]), ([1], [])])
def test_a_scan_without_findings_can_be_compared(shifted: Alignment, now: list[int], before: list[int]) -> None:
    followed, gone = match_findings([sized(n, 0, 5) for n in now], [sized(n, 0, 5) for n in before], shifted)
    assert [match.change for match in followed] == ["new"] * len(now) and len(gone) == len(before)


@pytest.mark.parametrize(
    "volume, earlier, days",
    [(200.0, 100.0, 100.0), (400.0, 100.0, 50.0), (124.0, 100.0, None), (100.0, 200.0, None), (None, 100.0, None)],
)
def test_the_doubling_time_assumes_exponential_growth(volume: float | None, earlier: float, days: float | None) -> None:
    match = MatchedFinding(
        finding=sized(1, 0, 8, volume), place_lps_mm=(0, 0, 0), earlier=sized(1, 0, 6, earlier), distance_mm=0.0
    )
    assert match.doubling_days(100) == (None if days is None else pytest.approx(days))


@pytest.fixture(scope="module")
def answers(
    earlier: CTVolume, later: CTVolume, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """The outputs of ``trivium predict`` for both scans."""
    folder = tmp_path_factory.mktemp("answers")
    yield predicted(folder, "now", later), predicted(folder, "before", earlier)


@pytest.fixture(scope="module")
def centres(chest: tuple[CTVolume, list[Nodule]], answers: tuple[Path, Path]) -> dict[int, tuple[float, float, float]]:
    """The centres of the chest's nodules, by the ranks of their findings in the earlier scan."""
    findings = json.loads((answers[1] / "result.json").read_text())["findings"]
    places = np.array([finding["centre_lps_mm"] for finding in findings])
    distances_mm = [np.linalg.norm(places - nodule.centre_lps_mm, axis=1) for nodule in chest[1]]
    assert len(distances_mm) == 4 and max(distances.min() for distances in distances_mm) < 5, (
        "the detector finds all four"
    )
    return {
        findings[distances.argmin()]["rank"]: nodule.centre_lps_mm
        for distances, nodule in zip(distances_mm, chest[1], strict=True)
    }


@pytest.fixture(scope="module")
def alignments() -> dict[tuple[float, ...], Alignment]:
    return {}


@pytest.fixture
def align_once(alignments: dict[tuple[float, ...], Alignment], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of this module that compare the same two scans align them once."""

    def known_or_new(scan: CTVolume, box: list[float], other: CTVolume, other_box: list[float]) -> Alignment:
        if (*box, *other_box) not in alignments:
            alignments[*box, *other_box] = align(scan, box, other, other_box)
        return alignments[*box, *other_box]

    monkeypatch.setattr(comparison, "align", known_or_new)


@pytest.mark.usefixtures("align_once")
def test_all_nodules_of_the_phantoms_are_matched(
    answers: tuple[Path, Path],
    centres: dict[int, tuple[float, float, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "comparison.json"
    assert main(["compare", "medical", *map(str, answers), "--days", "100", "--out", str(out)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Findings compared with the earlier scan" in output and "are they of the same patient?" not in output
    content = json.loads(out.read_text())
    findings = {
        finding["earlier"]["rank"]: finding for finding in content["findings"] if finding["earlier"] is not None
    }
    assert [findings[rank]["change"] for rank in centres] == ["stable"] * 4
    assert all(findings[rank]["distance_mm"] < 5 for rank in centres)
    assert content["correlation"] > 0.95 and content["days"] == 100


def predicted(folder: Path, name: str, volume: CTVolume) -> Path:
    """The folder that ``trivium predict`` writes for a scan."""
    (folder / f"{name}.nii.gz").write_bytes(nifti(volume))
    assert main(["predict", "medical", str(folder / f"{name}.nii.gz"), "--out", str(folder / name)]) == 0
    return folder / name


@pytest.mark.parametrize("found, words", [("findings", "not imaged before"), ("gone", "not imaged now")])
def test_findings_outside_the_other_scan_are_neither_new_nor_gone(
    earlier: CTVolume,
    answers: tuple[Path, Path],
    centres: dict[int, tuple[float, float, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: str,
    words: str,
) -> None:
    """One scan shows only the bases; another, with a small field of view, only the right lung, at low x."""
    axis, cut = (2, part(earlier, 0, earlier.size_ijk[2] // 2)) if found == "findings" else (0, right_half(earlier))
    end = cut.to_lps_mm(np.array(cut.size_ijk) - 1)[axis]
    folders = [answers[1], predicted(tmp_path, "cut", cut)]
    if found == "gone":
        folders.reverse()
    beyond = {rank for rank, centre in centres.items() if centre[axis] > end + 10}
    assert beyond and len(beyond) < len(centres), "nodules lie on both sides"
    out = tmp_path / "comparison.json"
    capsys.readouterr()
    assert main(["compare", "medical", *map(str, folders), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    listed = {entry["rank"]: entry for entry in content[found]}
    for rank in beyond:
        assert listed[rank]["place_slice"] is None
        assert found == "gone" or listed[rank]["change"] == "not imaged"
    output = " ".join(capsys.readouterr().out.split())
    assert output.count(words) == len([entry for entry in listed.values() if entry["place_slice"] is None])
    # Nodules that both scans show are matched.
    same = {
        (entry if found == "findings" else entry["earlier"])["rank"]: entry
        for entry in content["findings"]
        if entry["earlier"]
    }
    assert all(same[rank]["distance_mm"] < 5 for rank in centres.keys() - beyond)
    assert "are they of the same patient?" not in output


def right_half(volume: CTVolume) -> CTVolume:
    """Its columns of the patient's right half."""
    return replace(volume, voxels_zyx=np.ascontiguousarray(volume.voxels_zyx[:, :, : volume.size_ijk[0] // 2]))


def test_an_earlier_effusion_does_not_suggest_another_patient(earlier: CTVolume) -> None:
    lungs, box = find_lungs(earlier), lung_box(earlier)
    assert lungs is not None
    k, j, i = np.indices(earlier.voxels_zyx.shape)
    index = np.stack([i, j, k], -1).reshape(-1, 3)
    x, _, z = earlier.to_lps_mm(index).T
    filled = lungs.contain(index) & (x < (box[0] + box[3]) / 2) & (z < (box[2] + box[5]) / 2)
    voxels = earlier.voxels_zyx.copy()
    voxels[filled.reshape(i.shape)] = 20
    with_effusion = replace(earlier, voxels_zyx=voxels)
    found = align(earlier, box, with_effusion, lung_box(with_effusion))
    likeness = vessel_correlation(earlier, box, with_effusion, found)
    assert likeness is not None and likeness > 0.9


@pytest.mark.realdata
def test_a_scan_of_one_lung_is_aligned_to_a_scan_of_both(medical_data: Path) -> None:
    both = read_volume([medical_data / "pyradiomics_lung1" / "lung1_image.nrrd"])
    right_lung = right_half(both)
    found = align(right_lung, lung_box(right_lung), both, lung_box(both))
    box = lung_box(right_lung)
    places = np.random.default_rng(1).uniform(box[:3], box[3:], (500, 3))
    assert np.median(np.linalg.norm(found.transform_points(places) - places, axis=1)) < 2 and found.correlation > 0.95
    likeness = vessel_correlation(right_lung, box, both, found)
    assert likeness is not None and likeness > 0.9


@pytest.mark.parametrize(
    "fit, vessels, is_asked, message",
    [
        (0.85, 0.95, False, "an effusion or a removed lung; the lung vessels match"),
        (0.95, 0.4, True, "The lung vessels of the two scans differ (correlation 0.40)"),
        (0.85, None, True, "The two scans do not align well (correlation 0.85)"),
    ],
)
def test_vessels_distinguish_patients_if_there_are_enough(
    answers: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    fit: float,
    vessels: float | None,
    is_asked: bool,
    message: str,
) -> None:
    monkeypatch.setattr(comparison, "align", lambda *_: Alignment(SimpleITK.TranslationTransform(3), fit))
    monkeypatch.setattr(comparison, "vessel_correlation", lambda *_: vessels)
    remarks = " ".join(comparison.compare_folders(*answers, None)[0]["remarks"])
    assert message in remarks and ("are they of the same patient?" in remarks) is is_asked


def test_a_warning_is_given_for_scans_of_two_patients(
    earlier: CTVolume, answers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other patient's scan is the mirror image: a chest of the same size with other vessels."""
    mirrored = replace(earlier, voxels_zyx=np.ascontiguousarray(earlier.voxels_zyx[:, :, ::-1]))
    (tmp_path / "slab.nii.gz").write_bytes(nifti(mirrored))
    result = json.loads((answers[1] / "result.json").read_text())
    result["lungs"]["box_lps_mm"] = lung_box(mirrored).tolist()
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert main(["compare", "medical", str(answers[1]), str(tmp_path)]) == 0
    assert "are they of the same patient?" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda now: (now / "slab.nii.gz").unlink(), "lacks result.json or slab.nii.gz"),
        (lambda now: (now / "result.json").write_text("{}"), "not from the medical application"),
        (lambda now: _change_result(now, lungs=None), "no lung was found in the later scan"),
    ],
)
def test_results_that_cannot_be_compared_are_rejected_with_a_message(
    answers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message: str
) -> None:
    now = tmp_path / "now"
    now.mkdir()
    for name in ("result.json", "slab.nii.gz"):
        (now / name).write_bytes((answers[0] / name).read_bytes())
    change(now)
    assert main(["compare", "medical", str(now), str(answers[1])]) == 2
    assert message in capsys.readouterr().err
    assert main(["compare", "finance", str(now), str(answers[1])]) == 2
    assert "cannot compare" in capsys.readouterr().err


def _change_result(folder: Path, **changes: object) -> None:
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.usefixtures("align_once")
def test_a_server_compares_two_of_its_cases(answers: tuple[Path, Path], tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", warm=False, device="cpu", workers=0)
    cases = []
    with closing(CaseStore(settings.store)) as store:
        for folder in answers:
            outputs = Outputs(
                result=(folder / "result.json").read_bytes(),
                picture=b"",
                files={"slab.nii.gz": (folder / "slab.nii.gz").read_bytes()},
            )
            case = store.add(
                app="medical", interface="json", inputs=(), options={}, artifact=("lung_nodules", 1), outputs=outputs
            )
            cases.append(case.id)
    with TestClient(create_app(settings, {"medical": app})) as client:
        at = f"/api/medical/cases/{cases[0]}/comparison"
        response = client.get(at, params={"prior": cases[1], "days": 100})
        assert response.status_code == 200
        assert [finding["change"] for finding in response.json()["findings"][:4]] == ["stable"] * 4
        described = client.get("/openapi.json").json()
        assert "MedicalComparison" in described["components"]["schemas"]
        missing = client.get(at, params={"prior": "0" * 32})
        assert missing.status_code == 404 and "has no case" in missing.text
        for days in ("-3", "nan", "1e9"):
            refusal = client.get(at, params={"prior": cases[1], "days": days})
            assert refusal.status_code in (400, 422) and "days" in refusal.text
