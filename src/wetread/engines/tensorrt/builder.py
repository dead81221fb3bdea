"""From ONNX bytes to a serialised engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wetread.engines.base import TensorInfo
from wetread.engines.tensorrt import runtime
from wetread.errors import EngineError
from wetread.package import ShapeProfile


@dataclass(frozen=True)
class Job:
    """What is built.

    Attributes:
        network: ONNX bytes of standard operators.
        inputs: the network's inputs; batches are run window by window, so that their batch is one.
        shapes: smallest, usual and largest window.
        workspace_bytes: device memory that a kernel may take for scratch while it is tried and while it runs.
        timings: the timing cache of earlier builds on this GPU; empty for none.
        where: the network's name in messages.
    """

    network: bytes
    inputs: Sequence[TensorInfo]
    shapes: ShapeProfile
    workspace_bytes: int
    timings: bytes
    where: str


def build(trt: Any, logger: Any, job: Job) -> tuple[bytes, bytes]:
    """Builds a plan; takes from seconds to minutes.

    Networks are strongly typed: TensorRT computes in the types that the graph says, int8 and float8 where it
    has quantise nodes, and chooses kernels only among those. TensorFloat-32, which would round the operands of
    float32 convolutions to 10 bits of mantissa, is off.

    Returns:
        The serialised engine, and the timing cache with what this build has measured.

    Raises:
        UnsupportedOperatorError, GraphError: TensorRT cannot run or read the network.
        EngineError, DeviceMemoryError: no kernels were found, or too little memory for them.
    """
    builder = trt.Builder(logger=logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # 11.x knows no other and ignores it
    network = builder.create_network(flags=typed)
    parser = trt.OnnxParser(network=network, logger=logger)
    if not parser.parse(model=job.network):
        raise runtime.parse_failure(parser, job.where)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=job.workspace_bytes)
    config.clear_flag(flag=trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers can be asked
    _set_timings(config, job.timings)
    if any(None in info.shape for info in job.inputs):
        _set_profile(builder, config, logger, job)
    plan = builder.build_serialized_network(network=network, config=config)
    if plan is None:
        raise runtime.failure(
            logger,
            f"TensorRT cannot build the network for windows of {job.shapes.min} to {job.shapes.max}",
            job.where,
            "use a window whose sizes are multiples of the network's strides, or another backend",
        )
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _set_timings(config: Any, timings: bytes) -> None:
    """Gives the builder earlier measurements; those of another version or GPU are left out and said so."""
    cache = config.create_timing_cache(serialized_timing_cache=timings)
    if not config.set_timing_cache(cache=cache, ignore_mismatch=False):
        runtime.LOG.warning("TensorRT's timing cache is of another version or GPU; measuring anew")
        config.set_timing_cache(
            cache=config.create_timing_cache(serialized_timing_cache=b""), ignore_mismatch=False
        )


def _set_profile(builder: Any, config: Any, logger: Any, job: Job) -> None:
    """One optimisation profile: free axes take the sizes of the window profile, a free batch is one."""
    profile = builder.create_optimization_profile()
    for info in job.inputs:
        sizes = [
            tuple(
                size if size is not None else free
                for size, free in zip(info.shape, (1, 1, *window), strict=True)
            )
            for window in (job.shapes.min, job.shapes.opt, job.shapes.max)
        ]
        try:
            profile.set_shape(input=info.name, min=sizes[0], opt=sizes[1], max=sizes[2])
        except ValueError as error:
            raise EngineError(
                f"TensorRT refuses the window shapes {sizes}: {error}", where=f"{job.where}: {info.name}"
            ) from error
    if config.add_optimization_profile(profile=profile) < 0:
        raise runtime.failure(logger, "TensorRT refuses the profile of window shapes", job.where)
