"""Emoji in three styles, 64x64 RGB, 27 classes. They are few and may be memorised: the report shows it."""

from dataclasses import replace

from trainer.recipes.photos import PHOTOS_64

EMOJI_64 = replace(PHOTOS_64, flip=False)  # a mirrored letter is no emoji
