"""See a graph: its layers and batch norms, and whether training ops reach their updates."""
