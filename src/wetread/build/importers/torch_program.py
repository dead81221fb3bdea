"""Exported programs of PyTorch (``.pt2``): the graph is there, the recipe is not.

`torch.export.load` reads JSON and raw weights, but it executes pickles where the archive asks for it, hands
shape expressions to `sympy.sympify` (which evaluates Python) and looks operators up by any dotted name below
`torch`. So the archive is read here first, as data; what an ordinary export does not hold needs ``--trust``.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.build.importers.pickles import beyond_tensors, open_archive, pickled_globals
from wetread.build.importers.torch_graph import need_torch, program_graph, quiet, short, tools
from wetread.errors import GraphError

_EXPRESSION = re.compile(r"^[\w\s+*/(),.<>=&|~-]*$")
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"^(zs|zu|zf|zuf|s|u|f|us|i)\d+$")
_SPELT = re.compile(r"Symbol\('(\w+)'(?:, \w+=(?:True|False))*\)")
_FUNCTION = re.compile(
    r"^(Abs|And|CeilDiv|CeilToInt|CleanDiv|Eq|FloatTrueDiv|FloorDiv|FloorToInt|Ge|Gt|"
    r"Identity|IntTrueDiv|Le|LShift|Lt|Max|Min|Mod|ModularIndexing|Ne|Not|Or|PowByNatural|"
    r"PythonMod|RoundToInt|RShift|ToFloat|TruncToInt|Where|Integer|True|False|oo|int_oo|inf)$"
)
_TARGET = re.compile(
    r"^(torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|torch\.sym_\w+|_operator\.\w+|math\.\w+)$"
)
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def import_program(path: Path, options: ImportOptions) -> Imported:
    """Reads an exported program and turns it into ONNX.

    Which axes are free was decided when it was exported.

    Raises:
        GraphError: truncated, of another version of PyTorch, needs ``--trust``, or no counterpart in ONNX.
        EngineUnavailableError: PyTorch is not installed.
    """
    reasons = inspect_program(path)
    if reasons and not options.trust:
        raise GraphError(
            f"loading this file would execute what it holds: {'; '.join(reasons[:4])}",
            where=str(path),
            todo="say --trust if you know who made it, or export it again with torch.export.save",
            code="NEEDS_TRUST",
        )
    torch = need_torch(str(path))
    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as error:  # the loader raises what it likes
        raise GraphError(
            f"PyTorch {torch.__version__} cannot load this exported program: {short(error)}",
            where=str(path),
            todo="export it again with this version of PyTorch, or build with the version that exported it",
        ) from error
    graph = program_graph(program, str(path), optimise=options.optimise)
    return Imported((ImportedNetwork(graph),), sources=(path,), tools=tools())


def inspect_program(path: Path) -> tuple[str, ...]:
    """Why loading the archive would execute more than an exported network; empty where it would not.

    Raises:
        GraphError: the archive is damaged or no exported program.
    """
    reasons: list[str] = []
    with open_archive(path) as archive:
        names = archive.namelist()
        models = [n for n in names if re.search(r"(^|/)models/[^/]+\.json$", n)]
        models += [n for n in names if n == "serialized_exported_program.json"]
        if not models:
            raise GraphError(
                "this archive holds no exported program, or is not whole",
                where=str(path),
                todo="save it with torch.export.save, or copy the file again",
            )
        for name in models:
            reasons += _of_program(_json(archive, name, path), name)
        for name in names:
            if name.endswith("_config.json"):
                reasons += _of_config(_json(archive, name, path), name)
            elif name.endswith((".pt", ".pkl")):
                reasons += _of_pickle(archive.read(name), f"{path}: {name}", name)
            elif name.endswith((".so", ".cpp", ".py", ".cubin")):
                reasons.append(f"{name} is code")
    return tuple(dict.fromkeys(reasons))


def _json(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    try:
        return json.loads(archive.read(name))
    except ValueError as error:
        raise GraphError(f"is no JSON: {error}", where=f"{path}: {name}") from error


def _of_config(config: Any, name: str) -> Iterator[str]:
    """Weights and constants that are stored as pickles or objects."""
    for key, entry in config.get("config", {}).items():
        if entry.get("use_pickle", False) or not re.match(
            r"(weight|tensor)_\d+$", entry.get("path_name", "")
        ):
            yield f"{key} is pickled ({name})"


def _of_pickle(content: bytes, where: str, name: str) -> Iterator[str]:
    """PyTorch reads these with ``weights_only`` first, and executes them where that fails."""
    if not content:
        return
    torch = need_torch(where)
    try:
        with quiet():
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (UnpicklingError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, EOFError):
        found: frozenset[str] = frozenset()
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as inner:
                for member in inner.namelist():
                    if member.endswith(".pkl"):
                        found |= pickled_globals(inner.read(member), where)
        yield f"{name} is a pickle of {', '.join(beyond_tensors(found)) or 'something else than tensors'}"


def _of_program(program: Any, name: str) -> Iterator[str]:
    """Operators by unusual names, and expressions that are more than arithmetic."""
    guards = program.get("guards_code") or ()
    yield from (f"a guard is no comparison of shapes: {g!r}" for g in guards if not _plain_guard(str(g)))
    for key, value in _walk(program):
        if key == "target" and isinstance(value, str) and not _TARGET.match(value):
            yield f"the operator {value!r} ({name})"
        elif key == "expr_str" and not _plain(str(value)):
            yield f"the expression {value!r} ({name})"
        elif key == "source_fn_stack":
            for part in re.split(r"[,;]", str(value)):
                if "__" in part:
                    yield f"the function {part!r} ({name})"
        elif key in ("in_spec", "out_spec") and isinstance(value, str) and value:
            yield from _of_tree(value, name)


def _of_tree(text: str, name: str) -> Iterator[str]:
    try:
        tree = json.loads(text)
    except ValueError:
        yield f"a tree of arguments that is no JSON ({name})"
        return
    for key, value in _walk(tree):
        if key == "type" and value not in _TREES:
            yield f"arguments of the type {value!r} ({name})"


def _plain(expression: str) -> bool:
    expression = _SPELT.sub(r"\1", expression)
    words = _WORD.findall(expression)
    return (
        bool(_EXPRESSION.match(expression))
        and not re.search(r"[A-Za-z_)]\s*\.", expression)  # no attribute of anything
        and all(_SYMBOL.match(word) or _FUNCTION.match(word) for word in words)
    )


def _plain_guard(guard: str) -> bool:
    """PyTorch compiles guards when the program is made a module again; an exporter does not, but may one day."""
    words = set(_WORD.findall(guard))
    return "__" not in guard and not words & {
        "import",
        "eval",
        "exec",
        "open",
        "lambda",
        "os",
        "sys",
        "getattr",
    }


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All key-value pairs of nested JSON, from the outside in."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
