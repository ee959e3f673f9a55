"""One file per kind of output. Each writes its files whole, the same bytes for the same order, and reads its recipe."""
