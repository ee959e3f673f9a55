"""The scheduler in worker processes, and the pool that the HTTP process sees."""
