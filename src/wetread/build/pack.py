"""``wetread pack``: an ONNX network and a recipe become a package, after it is shown that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from wetread import __version__
from wetread.build.fit import check_fit
from wetread.errors import PackageError
from wetread.graph import Graph, verify
from wetread.package import Contents, NetworkFile, Package, SourceEntry, file_sha256, write_package
from wetread.recipe import Recipe, load_recipe


def pack(
    network: Path,
    recipe: Path | Recipe,
    out: Path,
    *,
    card: Path | None = None,
    sources: Sequence[Path] = (),
    force: bool = False,
) -> Package:
    """Makes a package of one network.

    The graph is verified, its channels are compared with the recipe's, and one random window is run (on
    OpenVINO where it is installed; else shapes are inferred only). The same input gives the same package.

    Args:
        network: ONNX file; external weights beside it are taken in.
        recipe: JSON file, or a recipe.
        out: folder of packages; ``<name>/<version>`` is made in it.
        card: model card, Markdown.
        sources: further files that the network was made from; their names and hashes go into the manifest.
        force: replaces the same version.

    Raises:
        GraphError, UnsupportedOperatorError: the network is malformed or cannot be run.
        RecipeError: recipe and network do not fit.
        PackageError: the version exists already, or a file is missing.
        OutputError: the package cannot be written.
    """
    network, out = Path(network), Path(out)
    parsed = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    graph = Graph.load(network).stripped()
    verify(graph)
    check_fit(graph, parsed)
    made_from = [network, *([] if isinstance(recipe, Recipe) else [Path(recipe)]), *sources]
    return write_package(
        out,
        parsed,
        [network_file(graph)],
        Contents(
            files={} if card is None else {"card.md": read_file(card)},
            sources=[source_entry(path) for path in made_from],
            tools={"wetread": __version__, "onnx": metadata.version("onnx")},
        ),
        force=force,
    )


def network_file(graph: Graph, stage: int = 0, fold: int = 0) -> NetworkFile:
    """A graph as it goes into a package."""
    return NetworkFile(graph.to_bytes(), graph.precision, graph.inputs, graph.outputs, stage, fold)


def read_file(path: Path) -> bytes:
    """Content of a small file.

    Raises:
        PackageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"a file cannot be read: {error.strerror}", where=str(path)) from error


def source_entry(path: Path) -> SourceEntry:
    """Name, hash and size of a file that a package was made from."""
    # the checkpoints of an ensemble have one name, in a folder for each fold
    folder = f"{path.parent.name}/" if path.parent.name.startswith("fold_") else ""
    return SourceEntry(name=folder + path.name, sha256=file_sha256(path), bytes=path.stat().st_size)
