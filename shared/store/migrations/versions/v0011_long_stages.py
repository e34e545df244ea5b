"""Stages of jobs of any length: those of loading a model name the network whose programs are timed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0011", "0010"


def upgrade() -> None:
    """Changes the type of the column, because PostgreSQL refuses texts that are longer than it says."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.alter_column("stage", existing_type=sa.String(32), type_=sa.Text, existing_nullable=False)
