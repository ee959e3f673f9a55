"""The step scheduler: requests in, events out. No HTTP, no processes, no settings."""
