"""The versions of the store's tables, in Alembic's layout: what a store of an earlier version is brought through.

A change of ``shared/store/tables.py`` comes with a file in ``versions/``; a test compares the two.
"""
