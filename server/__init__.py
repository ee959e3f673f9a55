"""HTTP server with step-level batching (`python -m server`): images in flight share every network call."""
