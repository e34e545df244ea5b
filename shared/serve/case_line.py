"""A kept case in a line, for lists of cases."""

from __future__ import annotations

import json

from shared.serve.service import Service
from shared.store.cases import RESULT
from shared.store.records import CaseSummary


def case_line(service: Service, case: CaseSummary) -> str:
    """The files and their size, and what was found in them where the app puts that into words."""
    megabytes = sum(item.bytes for item in case.inputs) / 1e6
    label = f"{case.label}, {megabytes:.3g} MB" if megabytes >= 0.1 else case.label
    if service.app.case_label is None:
        return label
    whole = service.store.get(service.app.name, case.id)
    found = None if whole is None else service.store.file(whole, RESULT)
    if found is None:
        return label
    try:
        return f"{service.app.case_label(json.loads(found.read_bytes()))} ({label})"
    except FileNotFoundError:  # the case was deleted meanwhile
        return label
