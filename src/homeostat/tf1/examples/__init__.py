"""`tensorflow.examples`, of which TF1 programs import the MNIST tutorial's reader."""

from homeostat.tf1.examples import tutorials

__all__ = ["tutorials"]
