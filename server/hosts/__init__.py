"""What runs the server: one file per host."""
