"""The table of model versions that an operator retired."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "retired_versions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("retired_ns", sa.BigInteger, nullable=False),
    )
