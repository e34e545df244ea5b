"""Results are stored only in ``result.json``, and the size of a case's files is recorded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Drops the column ``result``, renames ``door`` to ``interface``, and adds ``bytes``."""
    with op.batch_alter_table("cases") as cases:
        cases.drop_column("result")
        cases.alter_column("door", new_column_name="interface")
        cases.add_column(sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"))
