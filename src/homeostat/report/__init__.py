"""Reports: records in, text or HTML out. Nothing here loads a framework."""
