"""HTTP: routes, limits, checks, metrics, and one file per API."""
