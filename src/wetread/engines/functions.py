"""Whether an ONNX file holds functions, found without reading the file into memory."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from wetread.errors import GraphError

_FUNCTIONS = 25  # field number of ModelProto.functions in onnx.proto3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def has_functions(path: Path) -> bool:
    """True where the model defines functions of its own; runtimes that know none must be fed it inlined.

    Only the outermost fields are read: a tag, and a length to jump over. Bytes that are no protocol buffer end
    the search without a word, because whoever reads the network next says what is wrong with it.

    Raises:
        GraphError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            while file.tell() < size:
                tag = _varint(file)
                if tag is None:
                    return False
                number, wire = tag >> 3, tag & 7
                if number == _FUNCTIONS:
                    return True
                if wire == _VARINT:
                    _varint(file)
                elif wire == _BYTES:
                    file.seek(_varint(file) or 0, 1)
                elif wire in (_FIXED64, _FIXED32):
                    file.seek(8 if wire == _FIXED64 else 4, 1)
                else:
                    return False
    except OSError as error:
        raise GraphError(f"the network cannot be read: {error.strerror}", where=str(path)) from error
    return False


def _varint(file: BinaryIO) -> int | None:
    """The next variable-length integer; None at the end of the file, or where it is longer than 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    return None
