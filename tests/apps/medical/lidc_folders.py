"""Small synthetic chests in LIDC-IDRI's layout: folders of DICOM series, and the readers' XML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from apps.medical.types import CTVolume
from tests.apps.medical.chests import chest, series

Point = tuple[int, int]

RATINGS = dict.fromkeys(("internalStructure", "lobulation", "spiculation"), 1) | dict.fromkeys(
    ("subtlety", "texture"), 5
)
RATINGS |= {"calcification": 6, "sphericity": 4, "margin": 4, "malignancy": 3}


def ring(low: Point, high: Point) -> list[Point]:
    """The first pixels outside a nodule with the columns and rows from ``low`` to ``high``, both inclusive."""
    (a, b), (c, d) = (low[0] - 1, low[1] - 1), (high[0] + 1, high[1] + 1)
    top, bottom = [(x, b) for x in range(a, c + 1)], [(x, d) for x in range(c, a - 1, -1)]
    return [*top, *[(c, y) for y in range(b + 1, d)], *bottom, *[(a, y) for y in range(d - 1, b, -1)]]


def roi(image: str, points: Iterable[Point], included: bool = True) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord>\n<yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    inclusion = f"<inclusion>{str(included).upper()}</inclusion>"
    return f"<roi><imageZposition>-1.5</imageZposition><imageSOP_UID>{image}</imageSOP_UID>{inclusion}{edges}</roi>"


def nodule(rois: Iterable[str], **ratings: int) -> str:
    elements = "".join(f"<{name}>{value}</{name}>" for name, value in ratings.items())
    rated = f"<characteristics>{elements}</characteristics>" if ratings else "<characteristics/>"
    return f"<unblindedReadNodule><noduleID>Nodule 001</noduleID>{rated}{''.join(rois)}</unblindedReadNodule>"


def outlined(uid: str, slices: Sequence[int] = (9, 10), by: Point = (0, 0), larger: int = 0, **ratings: int) -> str:
    """The nodule of the chest, columns 28 to 31 and rows 38 to 41, moved ``by`` pixels and grown by ``larger``."""
    low, high = (28 + by[0] - larger, 38 + by[1] - larger), (31 + by[0] + larger, 41 + by[1] + larger)
    return nodule([roi(f"{uid}.{k + 1}", ring(low, high)) for k in slices], **{**RATINGS, **ratings})


def point(uid: str, at: Point, k: int) -> str:
    """A nodule below 3 mm."""
    return nodule([roi(f"{uid}.{k + 1}", [at])])


def non_nodule(uid: str, at: Point, k: int) -> str:
    return (
        f"<nonNodule><nonNoduleID>2</nonNoduleID><imageZposition>-1.5</imageZposition><imageSOP_UID>{uid}.{k + 1}"
        f"</imageSOP_UID><locus><xCoord>{at[0]}</xCoord><yCoord>{at[1]}</yCoord></locus></nonNodule>"
    )


def message(uid: str, *readers: str) -> str:
    """The XML file of a series; each of ``readers`` is the text of one reader's marks, padded to four readers."""
    sessions = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>anonymous"
        f"</servicingRadiologistID>{marks}</readingSession>"
        for marks in (*readers, *[""] * (4 - len(readers)))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<LidcReadMessage uid="1.2.3" xmlns="http://www.nih.gov" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<ResponseHeader><Version>1.8.1</Version>'
        f"<SeriesInstanceUid>{uid}</SeriesInstanceUid><StudyInstanceUID>1.2</StudyInstanceUID></ResponseHeader>"
        f"{sessions}</LidcReadMessage>"
    )


RADIOGRAPH = (
    '<?xml version="1.0"?><IdriReadMessage xmlns="http://www.nih.gov/idri"><ResponseHeader><CTSeriesInstanceUid>1.2.3.1'
    "</CTSeriesInstanceUid><CXRSeriesInstanceUid>1.2.3.9</CXRSeriesInstanceUid></ResponseHeader><CXRreadingSession/>"
    "</IdriReadMessage>"
)


def scan(root: Path, patient: int, uid: str, xml: str | None, volume: CTVolume | None = None, **tags: object) -> Path:
    """Writes a series into the folder of its patient and study, with its XML beside the images; returns the folder."""
    name = f"LIDC-IDRI-{patient:04}"
    folder = root / name / "01-01-2000-NA-NA-30178" / f"{uid}-NA-03192"
    folder.mkdir(parents=True)
    images = series(volume or chest(), PatientID=name, SeriesInstanceUID=uid, StudyInstanceUID=f"{uid}.0", **tags)
    for image, content in images.items():
        (folder / f"{image}.dcm").write_bytes(content)
    if xml is not None:
        (folder / "069.xml").write_text(xml)
    return folder


def collection(root: Path) -> Path:
    """Writes five CT series of four patients, each with one nodule that all readers outlined."""
    for patient, uid in ((1, "1.2.3.1"), (1, "1.2.3.2"), (2, "1.2.3.3"), (3, "1.2.3.4"), (4, "1.2.3.5")):
        scan(root, patient, uid, message(uid, *[outlined(uid)] * 4))
    return root
