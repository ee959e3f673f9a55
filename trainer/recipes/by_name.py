"""The recipes by name."""

from trainer.recipes.digits import DIGITS
from trainer.recipes.earth import EARTH
from trainer.recipes.earth_x4 import EARTH_X4
from trainer.recipes.emoji import EMOJI
from trainer.recipes.emoji64 import EMOJI_64
from trainer.recipes.fashion import FASHION
from trainer.recipes.photos import PHOTOS, PHOTOS_64
from trainer.recipes.recipe import Recipe
from trainer.recipes.sprites import SPRITES

RECIPES: dict[str, Recipe] = {
    "digits": DIGITS,
    "fashion": FASHION,
    "sprites": SPRITES,
    "emoji": EMOJI,
    "emoji64": EMOJI_64,
    "earth": EARTH,
    "earth-x4": EARTH_X4,
    "photos": PHOTOS,
    "photos-64": PHOTOS_64,
}


class UnknownRecipeError(ValueError):
    """No recipe of that name."""


def recipe(name: str) -> Recipe:
    """Raises UnknownRecipeError, listing those that exist."""
    if name not in RECIPES:
        raise UnknownRecipeError(f"there is no recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]
