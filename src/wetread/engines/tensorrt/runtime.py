"""TensorRT loaded and asked whether it has what is used; its log as our errors."""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import Any

from wetread.engines.tensorrt import api
from wetread.errors import (
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    GraphError,
    UnsupportedOperatorError,
)

LOG = logging.getLogger("wetread.engines.tensorrt")
OLDEST = (10, 13)
NEWEST = 11
"""Releases whose bindings the conformance test covers: from `OLDEST` to the last of major version `NEWEST`."""

_MEMORY = re.compile(r"out of memory|OutOfMemory|[Mm]emory allocation|insufficient memory", re.IGNORECASE)


def load() -> Any:
    """Imports tensorrt.

    Raises:
        EngineUnavailableError: not installed, its libraries do not load, or a release that lacks what is used.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise EngineUnavailableError(
            f"the tensorrt backend cannot be imported: {error}", todo="pip install 'wetread[tensorrt]'"
        ) from error
    version = str(tensorrt.__version__)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST or numbers[0] > NEWEST:
        raise EngineUnavailableError(
            f"TensorRT is {version}, expected {OLDEST[0]}.{OLDEST[1]} to {NEWEST}.x",
            todo="pip install 'wetread[tensorrt]'",
        )
    if lost := api.missing(tensorrt):
        raise EngineUnavailableError(
            f"TensorRT {version} has no {', '.join(lost)}", todo="pip install 'wetread[tensorrt]'"
        )
    return tensorrt


def make_logger(trt: Any) -> Any:
    """A logger that keeps errors for messages and passes warnings on; attribute ``errors`` holds the last ones."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT reports failures by returning None and writing why to its log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, from any thread."""
            levels = trt.ILogger.Severity
            if severity in (levels.INTERNAL_ERROR, levels.ERROR):
                self.errors.append(msg)
            elif severity == levels.WARNING:
                LOG.warning("TensorRT: %s", msg)

    return Logger()


def failure(logger: Any, what: str, where: str, todo: str = "") -> EngineError:
    """What went wrong, with what TensorRT logged about it since the last failure."""
    reason = "; ".join(logger.errors) or "no reason given"
    logger.errors.clear()
    if _MEMORY.search(reason):
        return DeviceMemoryError(
            f"{what}: {reason}", where=where, todo="use a smaller window, or another GPU with more memory"
        )
    return EngineError(f"{what}: {reason}", where=where, todo=todo)


def parse_failure(parser: Any, where: str) -> GraphError:
    """The ONNX parser's errors; operators that it does not know are named."""
    errors = [parser.get_error(index=i) for i in range(parser.num_errors)]
    unknown = sorted({str(e.node_operator()) for e in errors if "UNSUPPORTED_NODE" in str(e.code())})
    if unknown:
        nodes = ", ".join(str(e.node_name()) for e in errors[:4])
        return UnsupportedOperatorError(
            f"TensorRT does not run the operators {', '.join(unknown)} as they are used in {nodes}: "
            f"{errors[0].desc()}",
            where=where,
            todo="export with other operators, or use another backend",
        )
    text = "; ".join(str(e.desc()) for e in errors[:4]) or "no reason given"
    return GraphError(f"TensorRT cannot read the network: {text}", where=where)
