"""Ended jobs do not keep the names of their files, because they may be those of persons."""

from __future__ import annotations

from alembic import op

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    """Deletes the names."""
    op.execute("UPDATE jobs SET files = '[]' WHERE state IN ('done', 'failed', 'cancelled')")
