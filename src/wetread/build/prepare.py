"""From a trained model to graphs that are ready to be lowered: imported, fitted to the recipe, optimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wetread.build.fit import check_fit, trial_window
from wetread.build.importers import Imported, ImportOptions, import_model
from wetread.build.options import BuildOptions
from wetread.errors import Notice, RecipeError
from wetread.graph import Graph, verify
from wetread.graph.passes import GraphReport, optimise
from wetread.package import ShapeProfile
from wetread.recipe import Recipe, load_recipe


@dataclass(frozen=True, eq=False)
class Network:
    """One network of the model.

    Attributes:
        stage, fold: place in a cascade and an ensemble.
        original: as it was imported, in float32: what others are compared with.
        graph: optimised.
        report: what the passes did.
    """

    stage: int
    fold: int
    original: Graph
    graph: Graph
    report: GraphReport


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model, ready to be lowered.

    Attributes:
        recipe: the user's, or the importer's.
        networks: in the order of stage and fold.
        sources: files that it was made from, the recipe's included.
        tools: names and versions of what read them.
        derived: where each field of the recipe came from, if the importer derived it.
        notices: what a person should know.
    """

    recipe: Recipe
    networks: tuple[Network, ...]
    sources: tuple[Path, ...]
    tools: dict[str, str]
    derived: dict[str, str]
    notices: tuple[Notice, ...]


def recipe_of(model: Path, options: BuildOptions) -> Recipe:
    """The recipe that a build with these options would have, without building.

    Raises:
        GraphError: the model cannot be read.
        RecipeError: there is no recipe.
    """
    given = _given(options)
    return _named(
        given if given is not None else import_model(model, _imports(options, None)).recipe, model, options
    )


def _named(recipe: Recipe | None, model: Path, options: BuildOptions) -> Recipe:
    """The recipe with the name and version that were asked for."""
    if recipe is None:
        raise RecipeError(
            "the model's format carries no recipe",
            where=str(model),
            todo="write one (`wetread schema` prints its fields) and give it with --recipe",
        )
    changes = {name: value for name, value in (("name", options.name), ("version", options.version)) if value}
    return load_recipe(recipe.model_dump(mode="json") | changes) if changes else recipe


def prepare(model: Path, options: BuildOptions) -> Prepared:
    """Imports a model, checks that it fits its recipe, and optimises its graphs.

    Raises:
        GraphError, UnsupportedOperatorError: the model is damaged, malformed or cannot be run; names file and node.
        RecipeError: there is no recipe, or it does not fit.
    """
    given = _given(options)
    imported = import_model(model, _imports(options, given))
    recipe = _named(given if given is not None else imported.recipe, model, options)
    networks, notices = [], list(imported.notices)
    for number, item in enumerate(imported.networks, 1):
        whole = _shaped(item.graph, recipe, options.shapes)
        first = whole.outputs[0].name
        if len(whole.outputs) > 1:
            notices.append(_outputs_cut(whole))
        original = whole.cut([first]) if len(whole.outputs) > 1 else whole
        verify(original)
        check_fit(original, recipe)
        graph, report = optimise(whole, window=trial_window(recipe), outputs=[first])
        networks.append(Network(item.stage, item.fold, original, graph, report))
        options.report("optimise", number, len(imported.networks))
    return Prepared(
        recipe,
        tuple(networks),
        _sources(imported, options),
        imported.tools,
        {} if given is not None else imported.derived,
        tuple(notices),
    )


def _given(options: BuildOptions) -> Recipe | None:
    if options.recipe is None or isinstance(options.recipe, Recipe):
        return options.recipe
    return load_recipe(options.recipe)


def _imports(options: BuildOptions, recipe: Recipe | None) -> ImportOptions:
    """What the importer is told: the recipe's window, and whether axes must stay free."""
    imports = options.imports
    free = options.shapes is not None or (
        recipe is not None and recipe.tiling.kind == "whole" and recipe.fixed_shape is None
    )
    window = imports.window if imports.window is not None or recipe is None else trial_window(recipe)
    return replace(
        imports,
        window=window,
        dynamic=imports.dynamic or free,
        derive=recipe is None,
        name=options.name or imports.name,
        version=options.version or imports.version,
    )


def _outputs_cut(graph: Graph) -> Notice:
    """Says what of the network is left out: further outputs (deep supervision), whose values no recipe reads."""
    kept, *others = (entry.name for entry in graph.outputs)
    return Notice(
        "OUTPUTS_CUT",
        f"the network has {len(graph.outputs)} outputs; {kept!r}, the first, is kept, "
        f"{', '.join(repr(name) for name in others)} (deep supervision?) are cut",
        graph.where,
    )


def _shaped(graph: Graph, recipe: Recipe, shapes: ShapeProfile | None) -> Graph:
    """The graph for the recipe's window, or with free axes for a profile.

    Raises:
        RecipeError: a profile was asked for, and the network's axes are fixed or its window lies outside.
    """
    fixed = graph.inputs[0].shape[2:]
    window = trial_window(recipe)
    if shapes is None:
        varies = recipe.tiling.kind == "whole" and recipe.fixed_shape is None
        known = len(graph.inputs) == 1 and len(graph.inputs[0].shape) == 5
        return (
            graph if varies or not known or any(size is not None for size in fixed) else graph.fixed(window)
        )
    if any(size is not None for size in fixed):
        raise RecipeError(
            f"the network's window is fixed at {tuple(fixed)}, --shapes needs free axes",
            where=graph.where,
            todo="export the network with free spatial axes, or leave --shapes out",
        )
    outside = [
        size
        for size, low, high in zip(window, shapes.min, shapes.max, strict=True)
        if not low <= size <= high
    ]
    if recipe.tiling.kind != "whole" and outside:
        raise RecipeError(
            f"the recipe's window {window} lies outside the profile {shapes.min} to {shapes.max}",
            where="--shapes",
            todo="widen the profile",
        )
    return graph


def _sources(imported: Imported, options: BuildOptions) -> tuple[Path, ...]:
    recipe: Sequence[Path] = (options.recipe,) if isinstance(options.recipe, Path) else ()
    return (*imported.sources, *recipe)
