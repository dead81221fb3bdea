"""Sliding windows with Gaussian blending: one function from HU to probability, whatever runs the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
WINDOW = (64, 128, 128)
STRIDE = (64, 64, 64)
HU_RANGE = (-600.0, 400.0)
Run = Callable[[Array], Array]
"""Network: input (N, 1, 64, 128, 128) float32 to logits of the same shape."""


Read = Callable[[Any], tuple[Array, Array]]
"""A whole reader: phantom to findings (bool) and probability, both of the phantom's shape."""


def bell() -> Array:
    """Weights of a window's voxels: a Gaussian of a quarter of the window's edge."""
    lines = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in WINDOW]
    return np.einsum("i,j,k->ijk", *lines).astype(np.float32)


def starts(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Lowest voxels of the windows, the last ones possibly past the end of the volume."""
    lines = [range(0, max(1, n - (w - s)), s) for n, w, s in zip(shape, WINDOW, STRIDE, strict=True)]
    for z in lines[0]:
        for y in lines[1]:
            for x in lines[2]:
                yield z, y, x


def predict(hu: Array, run: Run, batch: int = 1) -> Array:
    """Probability map of a volume in HU, (z, y, x) at 1 mm. Windows without 2% of lung-like air are skipped."""
    shape = hu.shape
    low, high = HU_RANGE
    image = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)
    lines = [max(0, -(-(n - w) // s)) * s + w for n, w, s in zip(shape, WINDOW, STRIDE, strict=True)]
    image = np.pad(image, [(0, full - n) for full, n in zip(lines, shape, strict=True)], mode="edge")
    total, weight, shape_of = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.float32), bell()
    todo = []
    for at in starts(shape):
        cut = tuple(slice(a, a + w) for a, w in zip(at, WINDOW, strict=True))
        inside = image[cut]
        if 0.02 < (inside == 0).mean() < 0.998:
            todo.append(cut)
        else:
            total[cut] += -20.0 * shape_of
            weight[cut] += shape_of
    for first in range(0, len(todo), batch):
        cuts = todo[first : first + batch]
        logits = run(np.stack([image[c] for c in cuts])[:, None])
        for cut, logit in zip(cuts, logits, strict=True):
            total[cut] += logit[0] * shape_of
            weight[cut] += shape_of
    total /= weight
    part = total[tuple(slice(0, n) for n in shape)]
    return (1 / (1 + np.exp(-np.clip(part, -30, 30)))).astype(np.float32)


def openvino_run(model: Path, threads: int) -> Run:
    """Runs an ONNX file with OpenVINO on the CPU in float32."""
    import openvino as ov

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(windows: Array) -> Array:
        return np.concatenate([request.infer([w[None]])[0].copy() for w in windows])

    return run


def torch_run(weights: Path) -> Run:
    """Runs a checkpoint's averaged network on the GPU in float16."""
    import torch
    from network import NoduleNet

    net = NoduleNet()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["average"])
    net = net.cuda().eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def run(windows: Array) -> Array:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            out: Array = net(torch.from_numpy(windows).cuda()).float().cpu().numpy()
        return out

    return run


def wetread_read(package: str, threads: int) -> Read:
    """Reads phantoms through wetread itself, by the package's recipe; `read` gives the voxels of its findings."""
    from wetread import Package
    from wetread.engines.registry import make_engine
    from wetread.inference import Runner
    from wetread.reading import Case, CaseInfo

    opened = Package.open(package)
    engine = make_engine(opened, threads=threads)

    def read(phantom: Any) -> tuple[Array, Array]:
        volume = phantom.volume()
        case = Case(opened, engine, volume.grid, CaseInfo(modality="CT"), threads=threads)
        case.add(0, volume.voxels)
        with Runner(case.sweep, engine) as runner:
            runner.run()
        reading = case.finish()
        assert reading.components is not None
        return reading.components > 0, case.sweep.result().probability.astype(np.float32)

    return read
