"""Methods: one file, one algorithm."""
