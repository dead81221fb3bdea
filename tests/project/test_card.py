"""The embedded package is what the scripts under training/ say it is."""

from __future__ import annotations

import json
from pathlib import Path

import wetread

ROOT = Path(__file__).resolve().parents[2]


def test_card_holds_what_was_measured():
    package = wetread.Package.open("lung-nodule")
    card = (package.path / "card.md").read_text(encoding="utf-8")
    assert (ROOT / "training" / "held-out.md").read_text(encoding="utf-8").strip() in card
    assert card == (ROOT / "training" / "card.md").read_text(encoding="utf-8")
    assert package.recipe == wetread.Package.open(package.path).recipe
    recipe = json.loads((ROOT / "training" / "recipe.json").read_text())
    assert package.recipe.labels[0].threshold == recipe["labels"][0]["threshold"]
    assert package.model_path().stat().st_size <= 8_000_000


def test_measured_figures_meet_the_aims():
    """Sensitivity at the recipe's operating point, from the record of the last run of training/evaluate.py."""
    data = json.loads((ROOT / "training" / "held-out.json").read_text())
    network, baseline = data["results"]["network"], data["results"]["baseline at 1 FP/scan"]
    assert network["scans"] >= 50
    assert network["classes"][">= 6 mm"]["sensitivity"] >= 0.95
    assert network["false_positives_per_scan"] <= 1
    assert network["classes"][">= 6 mm"]["dice"] >= 0.80
    assert baseline["classes"]["all"]["sensitivity"] < 0.7
