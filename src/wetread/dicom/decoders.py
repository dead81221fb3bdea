"""Decoders: child processes that decode compressed pixels, so that a damaged stream cannot take this one along.

While a `decoders` context is open, idle children are kept and used again, one for each thread that decodes; loading
a series opens one for its own duration, and a server may hold one for its life. They also let two cores
decode at once, because the native decoders hold the interpreter's lock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.dicom.header import SliceHeader
from wetread.errors import PixelError

TIME_LIMIT_S = 30.0

_lock = Lock()
_holders = 0
_idle: list[_Child] = []


class _Child:
    """One child process; used by one thread at a time."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from wetread.dicom.worker import main; main()"
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, request: dict[str, object], data: bytes) -> tuple[dict[str, Any], bytes]:
        """One exchange.

        Raises:
            EOFError, OSError, ValueError: the child has died.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise EOFError
        timer = Timer(TIME_LIMIT_S, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n" + data)
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            if not line:
                raise EOFError
            answer: dict[str, Any] = json.loads(line)
            content = self.process.stdout.read(int(answer.get("bytes", 0)))
            if len(content) != int(answer.get("bytes", 0)):
                raise EOFError
            return answer, content
        finally:
            timer.cancel()

    def close(self) -> int:
        """Ends the child; returns its exit status, negative for a signal."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was left to send to a child that has died
                    continue
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def decoders(ready: int = 0) -> Iterator[None]:
    """Keeps idle children for the next frame until the last open context ends.

    Args:
        ready: number of children to start at once, because starting one takes some 0.4 s.
    """
    global _holders  # noqa: PLW0603 - one pool for the process
    with _lock:
        _holders += 1
        _idle.extend(_Child() for _ in range(ready - len(_idle)))
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            ended = _idle[:] if _holders == 0 else []
            del _idle[: len(ended)]
        for child in ended:
            child.close()


def decode_apart(header: SliceHeader) -> NDArray[Any]:
    """Stored values of one compressed frame, decoded in a child process; shape (rows, columns).

    Raises:
        PixelError: the stream cannot be decoded, or the decoder crashed or took longer than half a minute.
    """
    source = header.instance.source
    path = str(source.path.absolute()) if source.path is not None else ""
    data = source.data or b"" if source.path is None else b""
    where = header.where("PixelData")
    with _lock:
        child = _idle.pop() if _idle else None
    try:
        child = child or _Child()
        answer, content = child.ask({"path": path, "bytes": len(data), "frame": header.frame}, data)
    except (EOFError, OSError, ValueError) as error:
        status = child.close() if child is not None else error
        raise PixelError(
            f"the decoder of transfer syntax {header.instance.transfer_syntax} died (status {status}); "
            "the stream is damaged",
            where=where,
            code="PIXEL_DECODE",
            todo="copy or export the instance again",
        ) from error
    with _lock:
        keep = _holders > 0
        if keep:
            _idle.append(child)
    if not keep:
        child.close()
    if "what" in answer:
        raise PixelError(
            str(answer["what"]),
            where=where,
            code=str(answer["code"]),
            todo="copy or export the instance again",
        )
    return np.frombuffer(content, np.dtype(str(answer["dtype"]))).reshape(answer["shape"]).copy()
