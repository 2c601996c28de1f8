"""For every rule and every source of models: a real model of each kind, or why there is none."""
