"""The recipe's JSON schema: current in the documentation, and of one mind with the model."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from wetread.errors import RecipeError
from wetread.recipe import Channel, Label, Recipe, Tiling, load_recipe, recipe_schema, write_recipe_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "schema" / "recipe.schema.json"
GOOD = Recipe(
    name="tiny",
    channels=(Channel(name="ct"),),
    tiling=Tiling(window=(16, 16, 16), stride=(8, 8, 8)),
    labels=(Label(index=1, name="bright", channels=(1,)),),
).model_dump(mode="json")


def test_documented_schema_is_current(tmp_path: Path) -> None:
    """If this fails: ``wetread schema > docs/schema/recipe.schema.json``."""
    assert DOCUMENT.read_text(encoding="utf-8") == write_recipe_schema(tmp_path / "s.json").read_text(
        encoding="utf-8"
    )


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


def test_schema_accepts_what_the_model_writes() -> None:
    jsonschema.validate(GOOD, recipe_schema())


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1}, {"name": "No Capitals"}, {"version": "1"}, {"channels": []}, {"labels": []},
        {"tiling": {"kind": "round"}}, {"activation": "relu"}, {"steps": [{"step": "magic"}]},
        {"steps": [{"step": "clip", "lower": 0}]}, {"lesions": {"connectivity": 7}},
    ],
)  # fmt: skip
def test_schema_and_model_refuse_the_same(change: dict) -> None:
    bad = json.loads(json.dumps({**GOOD, **change}))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, recipe_schema())
    with pytest.raises(RecipeError):
        load_recipe(bad)
