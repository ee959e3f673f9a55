"""Recipes: a data set together with the network and the settings that suit it, as values."""
