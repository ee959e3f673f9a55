"""Noise levels: trained levels, re-noising of outputs, levels as inputs of networks, the search for served levels."""
