"""Jobs that have ended keep no names of files: they may be those of persons."""

from __future__ import annotations

from alembic import op

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    """Takes them out."""
    op.execute("UPDATE jobs SET files = '[]' WHERE state IN ('done', 'failed', 'cancelled')")
