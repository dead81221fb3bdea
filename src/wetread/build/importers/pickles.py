"""What a pickle would import if somebody executed it; told without executing it.

A pickle is a program: its GLOBAL opcodes name functions and classes, its REDUCE opcodes call them. The lists
made here are for messages and for telling formats apart. They decide nothing about safety: what is loaded
without ``--trust`` goes through PyTorch's own restricted unpickler (``weights_only``).
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

from wetread.errors import GraphError

UNKNOWN = "?"
"""Stands for a name that the pickle puts together as it runs."""

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT"}
_OF_TENSORS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.serialization._get_layout",
    "torch.storage.",
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    "torch.BFloat16Storage",
    "torch.BoolStorage",
    "torch.ByteStorage",
    "torch.CharStorage",
    "torch.DoubleStorage",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.IntStorage",
    "torch.LongStorage",
    "torch.ShortStorage",
    "torch.bfloat16",
    "torch.bool",
    "torch.float16",
    "torch.float32",
    "torch.float64",
    "torch.int16",
    "torch.int32",
    "torch.int64",
    "torch.int8",
    "torch.uint8",
)


def pickled_globals(content: bytes, where: str) -> frozenset[str]:
    """Names that a pickle would import, such as ``torch._utils._rebuild_tensor_v2``.

    Args:
        content: one pickle, or several one after the other as in PyTorch's format before 1.6.
        where: file for messages.

    Raises:
        GraphError: it ends before its end, or is no pickle.
    """
    found: set[str] = set()
    stream, first = io.BytesIO(content), True
    while stream.tell() < len(content):
        begin = stream.tell()
        try:
            found |= _globals_of_one(stream)
        except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            if first:
                raise GraphError(
                    f"this is no whole pickle ({len(content)} bytes): {error}",
                    where=where,
                    todo="copy the file again",
                ) from error
            break  # PyTorch's old format goes on with raw tensors
        first = False
        if stream.tell() == begin:
            break
    return frozenset(found)


def _globals_of_one(stream: io.BytesIO) -> set[str]:
    found: set[str] = set()
    memo: dict[int, str | None] = {}
    pushed: list[str | None] = []
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            found.add(str(argument).replace(" ", ".", 1))
            pushed.append(None)
        elif name == "STACK_GLOBAL":
            both = pushed[-2:]
            known = len(both) == 2 and None not in both
            found.add(f"{both[0]}.{both[1]}" if known else UNKNOWN)
            pushed.append(None)
        elif name.startswith("EXT"):
            found.add(UNKNOWN)
        elif name in _STRINGS:
            pushed.append(str(argument))
        elif name in _GETS and argument is not None:
            pushed.append(memo.get(int(argument)))
        elif name == "MEMOIZE":
            memo[len(memo)] = pushed[-1] if pushed else None
        elif name in _PUTS and argument is not None:
            memo[int(argument)] = pushed[-1] if pushed else None
        elif opcode.stack_after:
            pushed.append(None)
    return found


def archive_globals(path: Path) -> dict[str, frozenset[str]]:
    """For each pickle in a zip, or for a plain pickle itself, the names that it would import.

    Raises:
        GraphError: the file is truncated or cannot be read; names it.
    """
    content = _read(path)
    if not content.startswith(b"PK"):
        return {path.name: pickled_globals(content, str(path))}
    with open_archive(path) as archive:
        return {
            name: pickled_globals(archive.read(name), f"{path}: {name}")
            for name in archive.namelist()
            if name.endswith(".pkl")
        }


def beyond_tensors(names: frozenset[str]) -> list[str]:
    """Those of the names that no checkpoint of bare tensors needs, sorted."""
    return sorted(name for name in names if not name.startswith(_OF_TENSORS))


def open_archive(path: Path) -> zipfile.ZipFile:
    """Opens a zip; every member is whole where this returns.

    Raises:
        GraphError: truncated, damaged, or no zip; names the file and the member.
    """
    try:
        archive = zipfile.ZipFile(path)
        bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise GraphError(
            f"this is no whole zip archive ({_size(path)} bytes): {error}",
            where=str(path),
            todo="save the network again, or copy the file again",
        ) from error
    if bad is not None:
        archive.close()
        raise GraphError(
            f"the member {bad!r} is damaged: its checksum is wrong",
            where=str(path),
            todo="save the network again, or copy the file again",
        )
    return archive


def members(path: Path) -> tuple[str, ...]:
    """Names in a zip without its topmost folder, where PyTorch puts all in one; empty where it is no zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return ()
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) == 1 and all("/" in name for name in names):
        names = [name.split("/", 1)[1] for name in names]
    return tuple(names)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GraphError(f"the file cannot be read: {error.strerror}", where=str(path)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
