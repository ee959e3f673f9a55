"""Rewards: log r of images, by which a prior is tilted."""
