"""MONAI bundles: network, weights and recipe from the bundle's own files, without executing them.

The network is built of one of MONAI's own classes (``monai.networks.nets``) with the arguments in the bundle's
configuration, and weights are loaded by PyTorch's restricted unpickler; or it is TorchScript (``model.ts``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.build.importers.monai_config import Component, Config, Evaluate, known
from wetread.build.importers.monai_files import BundleFiles, bundle_files
from wetread.build.importers.monai_recipe import derive_recipe
from wetread.build.importers.pickles import archive_globals, beyond_tensors
from wetread.build.importers.torch_graph import module_graph, need_torch, quiet, short, tools
from wetread.build.importers.torchscript import load_torchscript, torchscript_graph
from wetread.errors import EngineUnavailableError, GraphError, Notice, RecipeError
from wetread.graph import Graph
from wetread.recipe import Recipe

_INFERENCE = ("inference.json", "inference.yaml", "inference.yml")
_NETWORKS = ("network_def", "network", "net")
_STATES = ("model", "state_dict", "network", "net", "model_state_dict")
_WHOLE = 64
"""Voxels along each axis of the window that a network for whole volumes is exported with; axes stay free."""


def import_bundle(path: Path, options: ImportOptions) -> Imported:
    """Reads a MONAI bundle: a folder, a zip, or TorchScript with an embedded configuration.

    Raises:
        GraphError: weights are missing or damaged, do not fit the network, or need ``--trust``.
        RecipeError: the configuration holds something that matters and has no counterpart; names the key.
        EngineUnavailableError: PyTorch or MONAI is not installed.
    """
    files = bundle_files(path)
    configs = files.configs()
    if "metadata.json" not in configs:
        raise RecipeError("the bundle has no metadata.json", where=str(path))
    name = next((name for name in _INFERENCE if name in configs), None)
    if name is None:
        raise RecipeError(
            f"the bundle has none of {', '.join(_INFERENCE)}",
            where=str(path),
            todo="add the configuration of its inference, or build from the network alone and --recipe",
        )
    evaluate = _evaluator(configs[name]) if options.trust else None
    config = Config(configs[name], f"{path.name}: {name}", configs, evaluate)
    recipe: Recipe | None = None
    derived: dict[str, str] = {}
    notices: tuple[Notice, ...] = ()
    if options.derive:
        recipe, derived, notices = derive_recipe(configs["metadata.json"], config, options, path.name)
    graph, more = _network(files, config, configs["metadata.json"], recipe, options)
    return Imported(
        (ImportedNetwork(graph),),
        recipe=recipe,
        sources=_sources(files, name),
        tools=tools("monai"),
        derived=derived,
        notices=(*notices, *more),
    )


def _evaluator(data: Mapping[str, Any]) -> Evaluate:
    """What the user trusts: MONAI's own parser, which executes the bundle's expressions."""

    def evaluate(key: str) -> Any:
        try:
            from monai.bundle import ConfigParser

            with quiet():
                return ConfigParser(dict(data)).get_parsed_content(key)
        except Exception as error:  # an expression raises what it likes
            raise RecipeError(f"MONAI cannot evaluate this: {short(error)}", where=key) from error

    return evaluate


def _sources(files: BundleFiles, inference: str) -> tuple[Path, ...]:
    if not files.path.is_dir():
        return (files.path,)
    names = (files.model, "configs/metadata.json", f"configs/{inference}")
    return tuple(files.path / name for name in names)


def _network(
    files: BundleFiles,
    config: Config,
    metadata: Mapping[str, Any],
    recipe: Recipe | None,
    options: ImportOptions,
) -> tuple[Graph, tuple[Notice, ...]]:
    window = options.window
    if window is None and recipe is not None:
        window = recipe.tiling.window
    dynamic = options.dynamic or (recipe is not None and recipe.tiling.kind == "whole")
    if window is None:
        window = _stated_window(metadata) or (_WHOLE, _WHOLE, _WHOLE)
    options = ImportOptions(trust=options.trust, dynamic=dynamic, optimise=options.optimise)
    channels = _channels(metadata)
    name = files.model
    where = str(files.path) if files.embedded else f"{files.path}/{name}"
    with files.file(name) as path:
        if files.embedded or name.endswith(".ts"):
            script = load_torchscript(path, trust=options.trust)
            return torchscript_graph(script, window, options, where, channels)
        network = build_network(config)
        load_weights(network, path, where)
    return module_graph(network, channels, window, options, where)


def _stated_window(metadata: Mapping[str, Any]) -> tuple[int, int, int] | None:
    inputs = metadata.get("network_data_format", {}).get("inputs", {})
    shape = next((told.get("spatial_shape") for told in inputs.values()), None)
    if isinstance(shape, Sequence) and len(shape) == 3 and all(isinstance(size, int) for size in shape):
        return shape[0], shape[1], shape[2]
    return None


def _channels(metadata: Mapping[str, Any]) -> int:
    inputs = metadata.get("network_data_format", {}).get("inputs", {})
    return int(next((told.get("num_channels", 1) for told in inputs.values()), 1))


def build_network(config: Config) -> Any:
    """The network of a configuration, of one of MONAI's own classes.

    Raises:
        RecipeError: an argument is not computed.
        GraphError: the class is none of MONAI's networks, or does not take the arguments.
        EngineUnavailableError: PyTorch or MONAI is not installed.
    """
    found = next((config.get(key) for key in _NETWORKS if key in config), None)
    if not isinstance(found, Component):
        raise GraphError(
            f"no network is described under {', '.join(_NETWORKS)}",
            where=config.where,
            todo="add a network_def, or TorchScript at models/model.ts",
        )
    torch = need_torch(found.where)
    try:
        from monai.networks import nets
    except ImportError as error:
        raise EngineUnavailableError(
            "MONAI is not installed, its networks cannot be built without it",
            where=found.where,
            todo="pip install 'wetread[monai]', or use the bundle's models/model.ts",
        ) from error
    kind = getattr(nets, found.name, None)
    ours = "." not in found.target or found.target.startswith("monai.networks.nets.")
    if not ours or not inspect.isclass(kind) or not issubclass(kind, torch.nn.Module):
        raise GraphError(
            f"the network's class is {found.target!r}, none of monai.networks.nets",
            where=found.where,
            todo="a bundle's own code is not executed: export its network to models/model.ts, .pt2 or ONNX",
        )
    arguments = {key: known(value) for key, value in found.arguments.items()}
    if arguments.get("pretrained"):
        raise GraphError("the network would download weights (pretrained)", where=found.where)
    try:
        with quiet():
            return kind(**arguments)
    except Exception as error:  # constructors raise what they like
        raise GraphError(
            f"{found.name} does not take these arguments: {short(error)}",
            where=found.where,
            todo="build with the version of MONAI that the bundle's metadata names",
        ) from error


def load_weights(network: Any, path: Path, where: str) -> None:
    """Loads a checkpoint into a network, strictly; nothing pickled is executed.

    Raises:
        GraphError: truncated, more than tensors, or weights that do not fit; names the first of them.
    """
    torch = need_torch(where)
    needed = sorted({name for names in archive_globals(path).values() for name in beyond_tensors(names)})
    try:
        with quiet():
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises what it likes
        raise GraphError(
            f"the weights cannot be loaded without executing them: the pickle imports {', '.join(needed[:6])}"
            if needed
            else f"the weights cannot be loaded: {short(error)}",
            where=where,
            todo="save the network's state_dict alone: torch.save(network.state_dict(), 'model.pt')",
        ) from error
    for key in _STATES:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise GraphError(f"the checkpoint holds a {type(state).__name__}, expected weights", where=where)
    if state and all(str(key).startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    expected = network.state_dict()
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or unknown or wrong:
        told = [f"{len(missing)} are missing ({missing[0]})"] if missing else []
        told += [f"{len(unknown)} are not the network's ({unknown[0]})"] if unknown else []
        if wrong:
            key = wrong[0]
            shapes = f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            told.append(f"{len(wrong)} have another shape ({shapes})")
        raise GraphError(
            f"the weights do not fit the network: {'; '.join(told)}",
            where=where,
            todo="use the network_def that these weights were trained with",
        )
    network.load_state_dict(state)
