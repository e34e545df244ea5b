"""With --one-per-study the gateway has only one reconstruction of a study analysed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom import Dataset

from apps.medical.adapters.gateway import DicomGateway
from shared.errors import InvalidInputError
from tests.apps.medical.pacs import (
    UNCLOSED_SOCKETS,
    Archive,
    StubServer,
    gateway,
    images,
    send,
    wait_for,
    waiting,
)

pytestmark = [*UNCLOSED_SOCKETS, pytest.mark.usefixtures("log")]

SOFT, LUNG = {"ConvolutionKernel": "Br40", "SliceThickness": "5"}, {"ConvolutionKernel": "Bl57", "SliceThickness": "5"}


def study() -> list[Dataset]:
    """Series by number of images: 3 thick, 4 with a soft kernel, 5 with a lung kernel, 6 coronal and thinner."""
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "SliceThickness": "1"}
    kinds = ((3, {**LUNG, "SliceThickness": "8"}), (4, SOFT), (5, LUNG), (6, coronal))
    return [image for count, tags in kinds for image in images(f"1.2.{count}", count, **tags)]


def submitted_counts(stub: StubServer) -> list[int]:
    return [len(stub.names(number)) for number in range(len(stub.bodies))]


def test_the_thinnest_axial_series_with_a_lung_kernel_is_analysed(
    tmp_path: Path, stub: StubServer, archive: Archive, log: pytest.LogCaptureFixture
) -> None:
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        assert set(send(port, study())) == {0}
        wait_for(lambda: archive.got)
        wait_for(lambda: log.text.count("was analysed (--one-per-study)") == 3)
        wait_for(lambda: not waiting(tmp_path))
    assert submitted_counts(stub) == [5] and len(archive.got) == 1


def test_a_screenshot_in_a_series_does_not_count_against_it(tmp_path: Path, stub: StubServer, archive: Archive) -> None:
    without = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    (screen,) = images("1.2.5", 1, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], **without, **LUNG)
    screen.SOPInstanceUID = screen.file_meta.MediaStorageSOPInstanceUID = "1.2.5.99"
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        assert set(send(port, [*study(), screen])) == {0}
        wait_for(lambda: not waiting(tmp_path) and archive.got)
    assert submitted_counts(stub) == [6]


def test_a_requested_kernel_has_priority(tmp_path: Path, stub: StubServer, archive: Archive) -> None:
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True, kernel=("B31f", "br40")) as port:
        send(port, study())
        wait_for(lambda: not waiting(tmp_path) and archive.got)
    assert submitted_counts(stub) == [4]


def test_if_a_series_is_refused_the_next_best_is_analysed(tmp_path: Path, stub: StubServer, archive: Archive) -> None:
    failed_job = {"state": "failed", "status": 422, "problem": "no"}
    stub.answer = lambda number: failed_job if submitted_counts(stub)[number - 1] == 5 else {"state": "done"}
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        send(port, study())
        wait_for(lambda: not waiting(tmp_path) and archive.got)
    assert submitted_counts(stub) == [5, 4] and len(archive.got) == 1


def test_a_study_without_an_axial_series_has_another_series_analysed(
    tmp_path: Path, stub: StubServer, archive: Archive
) -> None:
    stub.answer = lambda number: {"state": "failed", "status": 422, "problem": "it is not in axial slices"}
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        send(port, [image for image in study() if image.SeriesInstanceUID == "1.2.6"])
        wait_for(lambda: stub.bodies)
        wait_for(lambda: not waiting(tmp_path))
    assert submitted_counts(stub) == [6] and not archive.got


def test_studies_are_kept_apart_also_after_a_restart(tmp_path: Path, stub: StubServer, archive: Archive) -> None:
    other_study = images("1.2.9", 4, StudyInstanceUID="1.3", **LUNG)
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True, quiet_seconds=300) as port:
        assert set(send(port, [*study(), *other_study])) == {0}
    assert not stub.bodies
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True, quiet_seconds=0.02):
        wait_for(lambda: len(archive.got) == 2)
        wait_for(lambda: not waiting(tmp_path))
    assert sorted(submitted_counts(stub)) == [4, 5]


def test_a_series_waits_for_the_others_of_its_study(tmp_path: Path, stub: StubServer, archive: Archive) -> None:
    """The thick series is ready first; the thin one's association is aborted, so it waits longer."""
    from pynetdicom import AE

    thick, thin = images("1.2.3", 3, SliceThickness="8"), images("1.2.5", 5, **LUNG)
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True, quiet_seconds=0.1) as port:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(thin[0].SOPClassUID, thin[0].file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", port, ae_title="TRIVIUM")
        assert all(association.send_c_store(image).Status == 0 for image in thin)
        assert send(port, thick) == [0] * 3
        wait_for(lambda: not waiting(tmp_path) and archive.got)
        association.release()
    assert submitted_counts(stub) == [5]


def test_a_better_reconstruction_that_arrives_during_the_analysis_replaces_the_first(
    tmp_path: Path, stub: StubServer, archive: Archive, log: pytest.LogCaptureFixture
) -> None:
    stub.answer = lambda number: {"state": "running" if number == 1 else "done"}
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        send(port, images("1.2.4", 4, **SOFT))
        wait_for(lambda: stub.bodies)
        send(port, images("1.2.5", 5, **LUNG))
        wait_for(lambda: not waiting(tmp_path) and archive.got)
    assert submitted_counts(stub) == [4, 5] and stub.cancelled == ["/api/medical/jobs/1"] and len(archive.got) == 1
    assert "more images of its study arrived" in log.text


def test_whenever_the_gateway_is_killed_a_study_is_analysed_once(
    tmp_path: Path, stub: StubServer, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each deletion the spool is copied in the state that a kill would leave, and another gateway continues."""
    spool, killed, delete = tmp_path / "spool", list[Path](), shutil.rmtree

    def delete_and_keep(place: Path, **settings: bool) -> None:
        if spool in place.parents:
            killed.append(tmp_path / f"killed{len(killed)}")
            shutil.copytree(spool, killed[-1])
            half = killed[-1] / place.relative_to(spool)
            for file in [half / "study", half / "job", next(half.glob("*.dcm"))]:
                file.unlink(missing_ok=True)
        delete(place, **settings)

    monkeypatch.setattr(shutil, "rmtree", delete_and_keep)
    with gateway(spool, stub.address, archive.port, one_per_study=True) as port:
        send(port, study())
        wait_for(lambda: not waiting(spool) and archive.got)
    assert len(killed) == 4
    for killed_spool in killed:
        with gateway(killed_spool, stub.address, archive.port, one_per_study=True, quiet_seconds=0.02):
            wait_for(lambda spool=killed_spool: not waiting(spool))
    assert submitted_counts(stub) == [5]


def test_after_a_restart_a_submitted_study_waits_no_longer_than_a_new_one(
    tmp_path: Path, stub: StubServer, archive: Archive, log: pytest.LogCaptureFixture
) -> None:
    stub.answer = lambda number: {"state": "running"}
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        send(port, study())
        wait_for(lambda: any(name.endswith("/job") for name in waiting(tmp_path)))
    stub.answer = lambda number: {"state": "done"}
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True, quiet_seconds=1):  # 10 times: 10
        wait_for(lambda: not waiting(tmp_path) and archive.got)
    assert submitted_counts(stub) == [5] and "may be missing" not in log.text


def test_after_a_restart_images_newer_than_the_submission_make_a_study_wait_longer(
    tmp_path: Path, stub: StubServer, archive: Archive
) -> None:
    """As if the gateway was killed at that moment, before it could start again with the new images."""
    stub.answer = lambda number: {"state": "running"}
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True) as port:
        send(port, images("1.2.4", 4, **SOFT))
        wait_for(lambda: any(name.endswith("/job") for name in waiting(tmp_path)))
    (handed,) = (tmp_path / "series").iterdir()
    stub.answer = lambda number: {"state": "done"}
    (tmp_path / "late").mkdir()
    with gateway(tmp_path / "late", stub.address, archive.port, one_per_study=True, quiet_seconds=300) as port:
        send(port, images("1.2.5", 5, **LUNG))
    (late,) = (tmp_path / "late" / "series").iterdir()
    late.rename(handed.parent / late.name)
    with gateway(tmp_path, stub.address, archive.port, one_per_study=True, quiet_seconds=0.1):
        wait_for(lambda: not waiting(tmp_path) and archive.got)
    assert b'name="incomplete"\r\n\r\nyes' in stub.bodies[-1] and submitted_counts(stub) == [4, 5]


def test_a_kernel_alone_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="needs --one-per-study"):
        DicomGateway(to="PACS@127.0.0.1:104", kernel=("Bl57",))
