"""nnU-Net v2 results folders: each fold's checkpoint becomes a graph, the plans become the recipe.

Only PyTorch and ``dynamic-network-architectures`` are needed, not nnU-Net itself. Checkpoints are read by
PyTorch's restricted unpickler with numpy's scalars allowed, so that nothing in them is executed; classes that
the plans name are taken from these two packages alone.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.build.importers.nnunet_plans import DATASET, PLANS, Architecture, checkpoints, open_folder
from wetread.build.importers.nnunet_recipe import Trained, derive_recipe
from wetread.build.importers.pickles import open_archive
from wetread.build.importers.torch_graph import module_graph, need_torch, quiet, short, tools
from wetread.errors import EngineUnavailableError, GraphError, Notice

_PACKAGE = "dynamic_network_architectures"
_MOVED = f"{_PACKAGE}.architectures.unet"
_PREFIXES = ("module.", "_orig_mod.")


def import_nnunet(path: Path, options: ImportOptions) -> Imported:
    """Reads a trained nnU-Net model: one graph for each fold, and its recipe.

    Args:
        path: folder of the model (``<trainer>__<plans>__<configuration>``), or one above that holds no other.
        options: folds, checkpoint, mirroring, name and version are used.

    Raises:
        GraphError: a file is missing or truncated; folds are of different trainings; weights do not fit the
            network that the plans describe.
        RecipeError: a key is missing or asks for what cannot be done as nnU-Net does it.
        EngineUnavailableError: PyTorch or dynamic-network-architectures is not installed.
    """
    folder = open_folder(path)
    files = checkpoints(folder.path, options.folds, options.checkpoint)
    networks: list[ImportedNetwork] = []
    notices: list[Notice] = []
    derived, first = None, None
    for place, (fold, file) in enumerate(files.items()):
        weights, trained = load_checkpoint(file, trust=options.trust)
        if derived is None or first is None:
            derived, first = derive_recipe(folder, trained, options), trained
            notices += derived.notices
        elif (trained.configuration, trained.trainer) != (first.configuration, first.trainer):
            raise GraphError(
                f"this fold was trained as {trained.trainer} {trained.configuration}, the others as "
                f"{first.trainer} {first.configuration}",
                where=str(file),
                todo="choose folds of one training",
            )
        architecture = folder.configuration(trained.configuration).architecture()
        heads = derived.recipe.output_channels
        network = build_network(architecture, len(derived.recipe.channels), heads)
        _load_weights(network, weights, trained, str(file))
        window = derived.recipe.tiling.window
        assert window is not None
        graph, told = module_graph(network, len(derived.recipe.channels), window, options, str(file))
        notices += told
        networks.append(ImportedNetwork(graph, fold=int(fold) if fold.isdigit() else place))
    assert derived is not None
    if any(folder.path.glob("**/postprocessing.*")):
        text = "nnU-Net's postprocessing (largest components) is not part of the recipe"
        notices.append(Notice("POSTPROCESSING_LEFT", text, str(folder.path)))
    return Imported(
        tuple(networks),
        derived.recipe,
        sources=(folder.path / PLANS, folder.path / DATASET, *files.values()),
        tools=tools(_PACKAGE),
        derived=derived.origins,
        notices=tuple(notices),
    )


def load_checkpoint(path: Path, *, trust: bool = False) -> tuple[dict[str, Any], Trained]:
    """Weights of a checkpoint, and what it says of its training.

    Args:
        path: ``checkpoint_*.pth``.
        trust: executes its pickle where it holds more than tensors, numbers and plain containers.

    Raises:
        GraphError: truncated, not nnU-Net's, or it would execute code.
        EngineUnavailableError: PyTorch is not installed.
    """
    torch = need_torch(str(path))
    open_archive(path).close()
    try:
        with quiet(), torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # the unpickler raises what it likes
        raise GraphError(
            f"the checkpoint cannot be loaded without executing what it holds: {short(error)}",
            where=str(path),
            todo="say --trust if you know who made it, or copy the file again",
            code="NEEDS_TRUST",
        ) from error
    try:
        axes = content.get("inference_allowed_mirroring_axes")
        trained = Trained(
            configuration=str(content["init_args"]["configuration"]),
            trainer=str(content["trainer_name"]),
            mirror_axes=None if axes is None else tuple(int(axis) for axis in axes),
            where=str(path),
        )
        return dict(content["network_weights"]), trained
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise GraphError(
            f"this is no checkpoint of nnU-Net v2: {short(error)} is missing or damaged", where=str(path)
        ) from error


def _numpy_scalars() -> list[Any]:
    """What numpy's numbers need to be unpickled, under the names that old and new numpy write."""
    import numpy as np

    core = import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    kinds = [kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")]
    return [
        (core.scalar, "numpy.core.multiarray.scalar"),
        (core.scalar, "numpy._core.multiarray.scalar"),
        (core._reconstruct, "numpy.core.multiarray._reconstruct"),
        (core._reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *kinds,
        *(np.dtype(letter).type for letter in "bBhHiIlLqQefd?"),
    ]


def build_network(architecture: Architecture, inputs: int, outputs: int) -> Any:
    """The network that the plans describe, without deep supervision, with weights still to be loaded.

    Raises:
        GraphError: it names a class outside the known packages, or the arguments do not fit.
        EngineUnavailableError: dynamic-network-architectures is not installed.
    """
    arguments = dict(architecture.arguments)
    for name in architecture.imported:
        if arguments.get(name) is not None:
            arguments[name] = _class(str(arguments[name]), architecture.key)
    arguments["deep_supervision"] = False
    network = _class(architecture.name, architecture.key)
    try:
        with quiet():
            return network(input_channels=inputs, num_classes=outputs, **arguments)
    except Exception as error:  # constructors raise what they like
        raise GraphError(
            f"{architecture.name} cannot be made of the plans' arguments: {short(error)}",
            where=architecture.key,
            todo=f"install the version of {_PACKAGE} that the network was trained with",
        ) from error


def _class(name: str, where: str) -> Any:
    """A class by its dotted name; only out of torch.nn and dynamic-network-architectures."""
    module, _, attribute = name.rpartition(".")
    if not (module == "torch.nn" or module.startswith(("torch.nn.modules.", f"{_PACKAGE}."))):
        raise GraphError(
            f"the plans name the class {name!r}; known are those of torch.nn and {_PACKAGE}",
            where=where,
            todo="export the network to ONNX yourself, and give a recipe",
        )
    need_torch(where)
    if module.startswith(_PACKAGE):
        _need_architectures(where)
    for place in (module, _MOVED):
        try:
            found = getattr(import_module(place), attribute, None)
        except ImportError as error:
            if error.name is not None and not error.name.startswith(_PACKAGE):
                raise EngineUnavailableError(
                    f"{name} needs the package {error.name!r}, which is not installed",
                    where=where,
                    todo=f"pip install {error.name}",
                ) from error
            continue
        if isinstance(found, type):
            return found
    raise GraphError(f"there is no class {name!r}", where=where, todo=f"update {_PACKAGE}")


def _need_architectures(where: str) -> None:
    try:
        import_module(_PACKAGE)
    except ImportError as error:
        raise EngineUnavailableError(
            f"{_PACKAGE} is not installed, nnU-Net's networks cannot be built without it",
            where=where,
            todo="pip install 'wetread[nnunet]'",
        ) from error


def _load_weights(network: Any, weights: dict[str, Any], trained: Trained, where: str) -> None:
    """Puts weights into the network, all of them.

    Raises:
        GraphError: names or shapes differ.
    """
    named = {_plain(name): value for name, value in weights.items()}
    try:
        network.load_state_dict(named, strict=True)
    except RuntimeError as error:
        raise GraphError(
            f"the weights do not fit the network that the plans describe: {short(error)}",
            where=where,
            todo=f"the trainer {trained.trainer} may build a network of its own: export that to ONNX, and give a "
            "recipe",
        ) from error


def _plain(name: str) -> str:
    """Name of a weight without what wrappers for several GPUs and compilation put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
