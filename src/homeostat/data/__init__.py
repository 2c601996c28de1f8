"""Batches of examples for the tools, from files, folders and a user's own function."""

from homeostat.data.batches import Examples, unpack
from homeostat.data.function import function_named
from homeostat.data.source import Batches, open_batches

__all__ = ["Batches", "Examples", "function_named", "open_batches", "unpack"]
