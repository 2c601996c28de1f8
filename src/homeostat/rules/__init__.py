"""Rules that look at batch norms: one function each, documented in its docstring."""
