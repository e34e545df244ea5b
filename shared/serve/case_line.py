"""The text of a case in a list of cases."""

from __future__ import annotations

import json

from shared.serve.service import Service
from shared.store.records import CaseSummary


def case_line(service: Service, case: CaseSummary) -> str:
    """The names of the files and their size, preceded by the app's summary of the findings if it provides one."""
    megabytes = sum(item.bytes for item in case.inputs) / 1e6
    label = f"{case.label}, {megabytes:.3g} MB" if megabytes >= 0.1 else case.label
    if service.app.case_label is None:
        return label
    try:
        return f"{service.app.case_label(json.loads(service.store.read_result(case)))} ({label})"
    except FileNotFoundError:  # the case was deleted in the meantime
        return label
