"""Studies: one question each, answered by training through Homeostat's front doors."""
