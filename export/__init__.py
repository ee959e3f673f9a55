"""Checkpoint -> engine directory (`python -m export`), and the reader of that directory, without torch."""
