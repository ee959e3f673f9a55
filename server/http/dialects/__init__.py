"""One file per HTTP API."""
