"""Groups of keys: a key with a group sees only the cases and jobs of that group."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0010", "0009"


def upgrade() -> None:
    """Adds the columns and an index. Existing rows belong to no group."""
    for table in ("keys", "cases", "jobs"):
        op.add_column(table, sa.Column("group", sa.String(64), nullable=True))
    op.create_index("cases_by_app_group_and_time", "cases", ["app", "group", "created_ns"])
