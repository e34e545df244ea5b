"""The table of reviews.

Reviews are deleted with their case through the foreign key. A later migration that recreates the table ``cases``, as
Alembic's batch mode for SQLite does, must therefore save the reviews first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0009", "0008"


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "reviews",
        sa.Column("case_id", sa.String(32), sa.ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("reviewer", sa.String(64), primary_key=True),
        sa.Column("reviewed_ns", sa.BigInteger, nullable=False),
        sa.Column("verdicts", sa.JSON, nullable=False),
        sa.Column("missed", sa.JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
