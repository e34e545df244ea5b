"""The table of promotions: the live version of each model and the earlier ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Creates the table and its index."""
    op.create_table(
        "promotions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("promoted_ns", sa.BigInteger, nullable=False),
        sa.Column("rolled_back", sa.Boolean, nullable=False),
    )
    op.create_index("promotions_by_model_and_time", "promotions", ["model", "promoted_ns"])
