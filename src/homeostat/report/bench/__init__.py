"""The benchmark's rows, and tables and a page made of them alone."""
