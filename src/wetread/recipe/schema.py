"""The recipe's JSON schema, for editors and for people who write recipes by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wetread.recipe.model import Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of ``recipe.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(mode="validation"),
    }


def write_recipe_schema(path: Path) -> Path:
    """Writes the schema as ``wetread schema`` prints it, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return path
