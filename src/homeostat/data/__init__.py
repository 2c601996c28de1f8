"""Batches of examples for the tools, from files, folders and a user's own function."""

from homeostat.data.batches import Examples, unpack

__all__ = ["Examples", "unpack"]
