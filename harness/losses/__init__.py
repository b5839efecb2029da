"""The losses of the catalogue: a record for each, their laws, bounds, real cases and peers."""
