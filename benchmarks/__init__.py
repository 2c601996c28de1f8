"""Timings, each gated by a correctness check of the same call."""
