"""Which importer takes a model: told by what lies there, never by trying to load it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from wetread.build.importers.base import Imported, ImportOptions
from wetread.build.importers.kinds import is_bundle, is_checkpoint, is_program, is_torchscript
from wetread.build.importers.nnunet_plans import is_nnunet
from wetread.errors import GraphError


@dataclass(frozen=True)
class Format:
    """A format of models: how it is told, and where its importer lives.

    Attributes:
        name: for messages.
        tells: says whether a file or folder is of this format; opens no more than names and first bytes.
        module, function: the importer, imported when it is needed (some need torch).
    """

    name: str
    tells: Callable[[Path], bool]
    module: str
    function: str


def _onnx(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".onnx"


FORMATS: tuple[Format, ...] = (
    Format("ONNX file (.onnx)", _onnx, "wetread.build.importers.onnx", "import_onnx"),
    Format("nnU-Net v2 results folder", is_nnunet, "wetread.build.importers.nnunet", "import_nnunet"),
    Format("MONAI bundle", is_bundle, "wetread.build.importers.monai_bundle", "import_bundle"),
    Format("PyTorch program (.pt2)", is_program, "wetread.build.importers.torch_program", "import_program"),
    Format("TorchScript (.ts)", is_torchscript, "wetread.build.importers.torchscript", "import_torchscript"),
    Format("PyTorch file (.pt)", is_checkpoint, "wetread.build.importers.checkpoint", "import_checkpoint"),
)


def import_model(path: Path | str, options: ImportOptions | None = None) -> Imported:
    """Reads a trained model in any of the known formats.

    Args:
        path: file or folder.
        options: what the user says about it.

    Raises:
        GraphError: missing, of no known format, or damaged; names the file.
        RecipeError: a recipe cannot be derived; names the key.
        EngineUnavailableError: a library that the format needs is not installed.
    """
    path = Path(path)
    known = "; ".join(form.name for form in FORMATS)
    if not path.exists():
        raise GraphError("there is no such file or folder", where=str(path), todo=f"give one of: {known}")
    for form in FORMATS:
        if form.tells(path):
            load = cast(
                "Callable[[Path, ImportOptions], Imported]",
                getattr(import_module(form.module), form.function),
            )
            return load(path, options if options is not None else ImportOptions())
    raise GraphError("is of no format that can be imported", where=str(path), todo=f"give one of: {known}")
