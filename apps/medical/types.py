"""The canonical data of the medical application."""
