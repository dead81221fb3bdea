"""The child process in which compressed pixels are decoded; started by `wetread.dicom.decoders`.

Damaged JPEG streams crash or abort GDCM's and OpenJPEG's native code, and can make them take gigabytes. A process of
its own, with a memory limit, turns all of that into an error that names the instance.

Protocol, one exchange for each frame: a line of JSON ``{"path", "bytes", "frame"}``, then that many bytes of a file
where there is no path; back a line of JSON ``{"shape", "dtype", "bytes"}`` with the values behind it, or ``{"what"}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import BinaryIO

from wetread.dicom import codecs
from wetread.dicom.files import read_header
from wetread.dicom.header import Instance, SliceHeader, Source
from wetread.errors import WetreadError

MEMORY_LIMIT = 4 << 30


def main() -> None:
    """Answers requests on standard input until it ends."""
    reply = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # native code prints to both; neither may reach the protocol or the terminal
    os.dup2(silence, 2)
    _limit_memory()
    instances: dict[str, Instance] = {}
    requests = sys.stdin.buffer
    while line := requests.readline():
        _answer(json.loads(line), requests, reply, instances)
    os._exit(0)  # nothing to tidy up, and the parent waits


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(
    request: dict[str, object], requests: BinaryIO, reply: BinaryIO, instances: dict[str, Instance]
) -> None:
    path, frame = str(request["path"]), int(str(request["frame"]))
    data = requests.read(int(str(request["bytes"])))
    try:
        instance = instances.get(path) if path else None
        if instance is None:
            instances.clear()
            instance = read_header(Source(path, path=Path(path)) if path else Source("memory", data=data))
            if path and frame:
                instances[path] = instance
        values = codecs.decode_frame(SliceHeader(instance, frame))
    except WetreadError as error:
        reply.write(json.dumps({"what": error.what, "code": error.code}).encode() + b"\n")
    except MemoryError:
        reply.write(json.dumps({"what": "not enough memory", "code": "PIXEL_DECODE"}).encode() + b"\n")
    else:
        content = values.tobytes()
        head = {"shape": values.shape, "dtype": values.dtype.str, "bytes": len(content)}
        reply.write(json.dumps(head).encode() + b"\n" + content)
    reply.flush()
