"""The time at which to notify the webhook that a job has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0007", "0006"


def upgrade() -> None:
    """Adds the column and its index. The webhook is not notified of jobs that have already ended."""
    op.add_column("jobs", sa.Column("tell_ns", sa.BigInteger, nullable=True))
    op.create_index("jobs_by_time_to_tell", "jobs", ["tell_ns"])
