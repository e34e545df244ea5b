"""The table of jobs: requests that are answered later."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Creates the table and its index."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("app", sa.String(64), nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("changed_ns", sa.BigInteger, nullable=False),
        sa.Column("interface", sa.String(32), nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("sample", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("server", sa.String(64)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("case_id", sa.String(32)),
        sa.Column("problem", sa.Text),
        sa.Column("status", sa.Integer),
    )
    op.create_index("jobs_by_state_and_time", "jobs", ["state", "created_ns"])
