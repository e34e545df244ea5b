"""``trivium reviews``: writes the reviewed cases of a store as training data."""

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
    """Writes the cases, and prints what was written and what was left out."""
    app = find(command.app)
    reviewing = None if app.reviewing is None else app.reviewing()
    if reviewing is None or reviewing.export is None:
        raise InvalidInputError(f"{app.name} cannot export its reviews as training data")
    if command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise InvalidInputError(f"{command.out} already exists; name a new folder with --out")
    try:
        from shared.store.groups import check_group

        store = open_store(must_exist=True, folder=command.store)
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the store needs the package {error.name}; install trivium[serve]") from error
    with closing(store):
        if command.group is not None:
            check_group(store.engine, command.group)
        cases, remarks = _reviewed_cases(store, app.name, command.reviewer, command.group)
        if not cases:
            raise InvalidInputError(
                f"the store {store.folder} holds no case of {app.name} {_describe_selection(store, command)}"
            )
        # The folder may hold patient data.
        command.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        rows = [_row(case, sha256, reviewing) for case, sha256 in cases]
        try:
            exported = reviewing.export([case for case, _ in cases], command.out)
            with (command.out / "cases.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *rows])
        except BaseException:
            # A training would take half a data set for a complete one.
            for path in command.out.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
    counts = [str(sum(int(row[column]) for row in rows)) for column in range(len(_COLUMNS) - 4, len(_COLUMNS))]
    print_table(Table(title=f"Reviewed cases in {command.out}: {len(rows)}", columns=_COLUMNS[-4:], rows=[counts]))
    for remark in (*remarks, *exported):
        print_line(remark)
    return 0


def _describe_selection(store: CaseStore, command: Reviews) -> str:
    """Describes the requested reviews for an error message; names the reviewers if one was requested."""
    of_group = "" if command.group is None else f"of the group {command.group} "
    if command.reviewer is None:
        return f"{of_group}that was reviewed"
    all_reviews = store.reviews.of_app(command.app, command.group).values()
    names = ", ".join(sorted({review.reviewer for reviews in all_reviews for review in reviews if review.reviewer}))
    return f"{of_group}that was reviewed by {command.reviewer}{f'; reviewers are {names}' if names else ''}"


def _reviewed_cases(
    store: CaseStore, app: str, reviewer: str | None, group: str | None
) -> tuple[list[tuple[ReviewedCase, str]], list[str]]:
    """Selects the newest review of each case and the last-reviewed case of each input.

    Returns the cases with the digests of their inputs, oldest first, and remarks on what was left out.
    """
    by_input: dict[str, tuple[ReviewedCase, str]] = {}
    num_several = num_repeated = 0
    for case_id, reviews in store.reviews.of_app(app, group).items():
        review = next((each for each in reviews if reviewer is None or each.reviewer == reviewer), None)
        case = None if review is None else store.get(app, case_id)
        if review is None or case is None or (reviewed := _reviewed_case(store, case, review)) is None:
            continue
        num_several += reviewer is None and len(reviews) > 1
        earlier = by_input.get(case.inputs_sha256)
        num_repeated += earlier is not None
        if earlier is None or earlier[0].review.reviewed_ns <= review.reviewed_ns:
            by_input[case.inputs_sha256] = reviewed, case.inputs_sha256
    remarks = []
    if num_several:
        remarks.append(
            f"Cases reviewed by several reviewers: {num_several}. Uses the newest review, or those of --reviewer NAME."
        )
    if num_repeated:
        remarks.append(
            f"Further analyses of the same input, left out: {num_repeated}. Uses the analysis that was reviewed last."
        )
    return sorted(by_input.values(), key=lambda entry: (entry[0].created_ns, entry[0].id)), remarks


def _reviewed_case(store: CaseStore, case: Case, review: Review) -> ReviewedCase | None:
    """The case with its result; None if it has been deleted in the meantime."""
    from shared.store.cases import RESULT

    def file(name: str) -> bytes | Mapping[str, bytes] | None:
        if (path := store.file(case, name)) is not None:
            return path.read_bytes()
        if (sources := store.sources(case, name)) is None:
            return None
        return {
            source: content if isinstance(content, bytes) else content.read_bytes()
            for source, content in sources.items()
        }

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
