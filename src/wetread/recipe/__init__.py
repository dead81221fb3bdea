"""Recipes: what travels with a network and says how to use it."""

from wetread.recipe.model import (
    Channel,
    Code,
    Label,
    Lesions,
    Place,
    Recipe,
    Selector,
    Tiling,
    load_recipe,
)
from wetread.recipe.schema import recipe_schema, write_recipe_schema
from wetread.recipe.steps import (
    Clip,
    Crop,
    Fit,
    MinMax,
    Normalise,
    Pad,
    Resample,
    Resize,
    Scale,
    Step,
    ZScore,
)

__all__ = [
    "Channel",
    "Clip",
    "Code",
    "Crop",
    "Fit",
    "Label",
    "Lesions",
    "MinMax",
    "Normalise",
    "Pad",
    "Place",
    "Recipe",
    "Resample",
    "Resize",
    "Scale",
    "Selector",
    "Step",
    "Tiling",
    "ZScore",
    "load_recipe",
    "recipe_schema",
    "write_recipe_schema",
]
