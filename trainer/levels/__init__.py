"""Noise levels: which are trained, where outputs are re-noised, how networks are told them, which are served."""
