from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def medical_data(data_root: Path) -> Path:
    return data_root / "medical"
