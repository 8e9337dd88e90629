"""Merging models of one architecture into one: the parts of `python -m model.merge`."""
