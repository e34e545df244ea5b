"""The canonical data of the finance application."""
