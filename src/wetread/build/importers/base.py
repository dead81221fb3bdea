"""What every importer gives: typed graphs, a recipe where the format carries one, and where each fact came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wetread.errors import Notice
from wetread.graph import Graph
from wetread.recipe import Recipe


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about a model, beyond where it lies.

    Attributes:
        trust: formats that can only be loaded by executing what they hold may be loaded.
        folds: nnU-Net: which folds form the ensemble; empty takes all that are there.
        checkpoint: nnU-Net: name of the checkpoint file in each fold's folder.
        mirror: whether test-time mirroring goes into the recipe where the source does it by default.
        name, version: of the recipe that is derived; empty lets the importer choose.
        window: spatial shape that a network without a recipe is exported for; None asks the recipe.
        dynamic: spatial axes stay free in the exported graph.
        optimise: exporters fold what they can by themselves; False leaves it to the passes.
        derive: a recipe is derived where the format has what it takes; False where the user gives one.
    """

    trust: bool = False
    folds: tuple[int, ...] = ()
    checkpoint: str = "checkpoint_final.pth"
    mirror: bool = True
    name: str = ""
    version: str = "1.0.0"
    window: tuple[int, int, int] | None = None
    dynamic: bool = False
    optimise: bool = False
    derive: bool = True


@dataclass(frozen=True)
class ImportedNetwork:
    """One network of a model: its graph, and its place in a cascade and an ensemble."""

    graph: Graph
    stage: int = 0
    fold: int = 0


@dataclass(frozen=True)
class Imported:
    """A model as it was found.

    Attributes:
        networks: in the order of stage and fold.
        recipe: derived from the model's own files; None where the format has none.
        sources: files that it was made from.
        tools: names and versions of what read them.
        derived: for every field of the recipe that was derived, the file and key that it came from.
        notices: what was left out, or could not be carried over exactly.
    """

    networks: tuple[ImportedNetwork, ...]
    recipe: Recipe | None = None
    sources: tuple[Path, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    derived: dict[str, str] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
