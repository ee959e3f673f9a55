"""Compiled kernels without a GPU: what they compute, and what memory sees of them."""
