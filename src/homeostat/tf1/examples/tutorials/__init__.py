"""`tensorflow.examples.tutorials`."""

from homeostat.tf1.examples.tutorials import mnist

__all__ = ["mnist"]
