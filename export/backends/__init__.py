"""What runs an exported network: one file per backend, each with one `open_network`. Chosen by name, never replaced."""
