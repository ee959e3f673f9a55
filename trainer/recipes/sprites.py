"""Tiles of Dungeon Crawl, 32x32 RGB."""

from fewstep.unet_config import UNetConfig, ddpmpp
from trainer.recipes.recipe import Recipe

# A patch-2 stem halves the side the network works at: four times cheaper, and not visibly worse at 32x32.
SPRITES = Recipe(UNetConfig(width=64, mult=(1, 2, 2), blocks=2, patch=2), large=ddpmpp(32), flip=True)
