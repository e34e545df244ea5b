"""``trivium reviews``: the reviewed cases of a store as training data."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from shared.app import Table, find
from shared.cli.arguments import Reviews
from shared.cli.printing import print_line, print_table
from shared.cli.store import open_store
from shared.errors import InvalidInputError
from shared.review import Review, ReviewedCase, Reviewing

if TYPE_CHECKING:
    from shared.store.cases import CaseStore
    from shared.store.records import Case

_COLUMNS = (
    *("case", "inputs_sha256", "model", "version", "reviewed"),
    *("accepted", "rejected", "undecided", "missed"),
)


def run(command: Reviews) -> int:
    """Writes the cases, and says what was written and what was left out."""
    app = find(command.app)
    reviewing = None if app.reviewing is None else app.reviewing()
    if reviewing is None or reviewing.export is None:
        raise InvalidInputError(f"{app.name} states no layout of training data for its reviews")
    if command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise InvalidInputError(f"{command.out} is there already; name a new folder with --out")
    try:
        store = open_store(beside=True, folder=command.store)
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the store needs the package {error.name}; install trivium[serve]") from error
    with closing(store):
        cases, remarks = _reviewed(store, app.name, command.reviewer)
        if not cases:
            raise InvalidInputError(f"the store {store.folder} holds no case of {app.name} {_whose(store, command)}")
        # What is in it may be of patients.
        command.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        rows = [_row(case, sha256, reviewing) for case, sha256 in cases]
        try:
            exported = reviewing.export([case for case, _ in cases], command.out)
            with (command.out / "cases.csv").open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *rows])
        except BaseException:
            # Half of a data set would be trained on as if it were whole.
            for begun in command.out.iterdir():
                shutil.rmtree(begun) if begun.is_dir() else begun.unlink()
            raise
    counts = [str(sum(int(row[column]) for row in rows)) for column in range(len(_COLUMNS) - 4, len(_COLUMNS))]
    print_table(Table(title=f"Reviewed cases in {command.out}: {len(rows)}", columns=_COLUMNS[-4:], rows=[counts]))
    for remark in (*remarks, *exported):
        print_line(remark)
    return 0


def _whose(store: CaseStore, command: Reviews) -> str:
    """Whose reviews were asked for, and whose there are."""
    if command.reviewer is None:
        return "that was reviewed"
    reviewers = {one.reviewer for reviews in store.reviews.of_app(command.app).values() for one in reviews}
    names = ", ".join(sorted(filter(None, reviewers)))
    return f"that was reviewed by {command.reviewer}{f'; reviewers are {names}' if names else ''}"


def _reviewed(store: CaseStore, app: str, reviewer: str | None) -> tuple[list[tuple[ReviewedCase, str]], list[str]]:
    """The cases with the review that counts, the oldest first, and the digests of their inputs; what is to be said."""
    newest: dict[str, tuple[ReviewedCase, str]] = {}
    several = again = 0
    for case_id, reviews in store.reviews.of_app(app).items():
        chosen = next((one for one in reviews if reviewer is None or one.reviewer == reviewer), None)
        case = None if chosen is None else store.get(app, case_id)
        if chosen is None or case is None or (found := _case(store, case, chosen)) is None:
            continue
        several += reviewer is None and len(reviews) > 1
        before = newest.get(case.inputs_sha256)
        again += before is not None
        if before is None or before[0].review.reviewed_ns <= chosen.reviewed_ns:
            newest[case.inputs_sha256] = found, case.inputs_sha256
    remarks = []
    if several:
        remarks.append(f"Cases with reviews of several reviewers: {several}. The newest counts, or --reviewer NAME's.")
    if again:
        remarks.append(f"Left out, further analyses of the same input: {again}. The one that was reviewed last counts.")
    return sorted(newest.values(), key=lambda one: (one[0].created_ns, one[0].id)), remarks


def _case(store: CaseStore, case: Case, review: Review) -> ReviewedCase | None:
    """The case with its result; None where it is deleted meanwhile."""
    from shared.store.cases import RESULT

    def file(name: str) -> bytes | Mapping[str, bytes] | None:
        if (path := store.file(case, name)) is not None:
            return path.read_bytes()
        if (sources := store.sources(case, name)) is None:
            return None
        return {one: held if isinstance(held, bytes) else held.read_bytes() for one, held in sources.items()}

    def kept_input(name: str) -> bytes | None:
        path = store.kept_input(case, name)
        return None if path is None else path.read_bytes()

    result = file(RESULT)
    if not isinstance(result, bytes):
        return None
    return ReviewedCase(
        id=case.id,
        created_ns=case.created_ns,
        artifact=(case.artifact_name, case.artifact_version),
        review=review,
        result=json.loads(result),
        file=file,
        input=kept_input,
    )


def _row(case: ReviewedCase, inputs_sha256: str, reviewing: Reviewing) -> Sequence[str]:
    accepted, rejected = len(case.numbers("accepted")), len(case.numbers("rejected"))
    undecided = reviewing.count(case.result) - accepted - rejected
    counts = (accepted, rejected, undecided, len(case.review.missed))
    return case.id, inputs_sha256, case.artifact[0], str(case.artifact[1]), case.review.reviewed, *map(str, counts)
