"""The MNIST tutorial's reader, as `tensorflow.examples.tutorials.mnist`."""

from homeostat.tf1.examples.tutorials.mnist import input_data

__all__ = ["input_data"]
