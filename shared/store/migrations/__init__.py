"""Migrations of the store's tables, in Alembic's layout.

A change of ``shared/store/tables.py`` needs a migration in ``versions/``; a test compares the two.
"""
