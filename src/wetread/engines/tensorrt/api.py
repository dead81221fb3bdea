"""What this backend uses of TensorRT and CUDA: one table, asked when they are loaded and held to every release.

Classes and their members with the names of the arguments that are passed; an attribute has None. A test compares
the table with the Python bindings of TensorRT 10.13, 10.16 and 11.x and of CUDA, and the fake TensorRT of the
tests refuses whatever is not in it, so that the backend cannot use more than the table says.
"""

from __future__ import annotations

import inspect
from typing import Any

CLASSES: dict[str, dict[str, tuple[str, ...] | None]] = {
    "ILogger": {"__init__": (), "log": ("severity", "msg")},
    "Builder": {
        "__init__": ("logger",),
        "create_network": ("flags",),
        "create_builder_config": (),
        "create_optimization_profile": (),
        "build_serialized_network": ("network", "config"),
    },
    "IBuilderConfig": {
        "set_memory_pool_limit": ("pool", "pool_size"),
        "clear_flag": ("flag",),
        "add_optimization_profile": ("profile",),
        "create_timing_cache": ("serialized_timing_cache",),
        "set_timing_cache": ("cache", "ignore_mismatch"),
        "get_timing_cache": (),
        "profiling_verbosity": None,
    },
    "IOptimizationProfile": {"set_shape": ("input", "min", "opt", "max")},
    "ITimingCache": {"serialize": ()},
    "OnnxParser": {
        "__init__": ("network", "logger"),
        "parse": ("model",),
        "num_errors": None,
        "get_error": ("index",),
    },
    "ParserError": {"code": (), "desc": (), "node_name": (), "node_operator": ()},
    "Runtime": {"__init__": ("logger",), "deserialize_cuda_engine": ("serialized_engine",)},
    "ICudaEngine": {
        "create_execution_context": ("strategy",),
        "create_engine_inspector": (),
        "device_memory_size_v2": None,
        "num_io_tensors": None,
        "get_tensor_name": ("index",),
        "get_tensor_mode": ("name",),
    },
    "EngineInspector": {"get_engine_information": ("format",)},
    "IExecutionContext": {
        "set_input_shape": ("name", "shape"),
        "get_tensor_shape": ("name",),
        "set_tensor_address": ("name", "memory"),
        "set_device_memory": ("memory", "size"),
        "execute_async_v3": ("stream_handle",),
    },
}

ENUMS: dict[str, tuple[str, ...]] = {
    "ILogger.Severity": ("INTERNAL_ERROR", "ERROR", "WARNING"),
    "BuilderFlag": ("TF32",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "LayerInformationFormat": ("JSON",),
}

CUDA: dict[str, tuple[str, ...]] = {
    "cudaGetDeviceCount": (),
    "cudaGetDeviceProperties": ("device",),
    "cudaSetDevice": ("device",),
    "cudaMemGetInfo": (),
    "cudaMalloc": ("size",),
    "cudaFree": ("devPtr",),
    "cudaHostAlloc": ("size", "flags"),
    "cudaFreeHost": ("ptr",),
    "cudaStreamCreateWithFlags": ("flags",),
    "cudaStreamSynchronize": ("stream",),
    "cudaStreamDestroy": ("stream",),
    "cudaEventCreateWithFlags": ("flags",),
    "cudaEventRecord": ("event", "stream"),
    "cudaEventQuery": ("event",),
    "cudaEventSynchronize": ("event",),
    "cudaEventDestroy": ("event",),
    "cudaMemcpyAsync": ("dst", "src", "count", "kind", "stream"),
    "cudaGetErrorString": ("error",),
}

CUDA_NAMES = (
    "cudaHostAllocDefault", "cudaStreamNonBlocking", "cudaEventDisableTiming",
    "cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaMemcpyKind.cudaMemcpyDeviceToHost",
    "cudaError_t.cudaSuccess", "cudaError_t.cudaErrorNotReady", "cudaError_t.cudaErrorMemoryAllocation",
    "cudaDeviceProp.name", "cudaDeviceProp.major", "cudaDeviceProp.minor",
)  # fmt: skip


def missing(trt: Any) -> list[str]:
    """Names of the table that a `tensorrt` module does not have."""
    lost = [
        f"{owner}.{name}"
        for owner, members in CLASSES.items()
        for name in members
        if not hasattr(getattr(trt, owner, None), name)
    ]
    return lost + [
        f"{owner}.{name}"
        for owner, names in ENUMS.items()
        for name in names
        if find(trt, owner, name) is None
    ]


def missing_cuda(runtime: Any) -> list[str]:
    """Names and arguments of the table that a `cuda.bindings.runtime` module does not have."""
    lost = [name for name in CUDA_NAMES if find(runtime, *name.split(".")) is None]
    for name, arguments in CUDA.items():
        function = getattr(runtime, name, None)
        if function is None or tuple(inspect.signature(function).parameters) != arguments:
            lost.append(f"{name}({', '.join(arguments)})")
    return lost


def find(root: Any, *path: str) -> Any:
    """An attribute of an attribute, names with dots allowed; None where one is missing."""
    for name in ".".join(path).split("."):
        root = getattr(root, name, None)
    return root
