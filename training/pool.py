"""A growing pool of phantoms: made by worker processes, held on the device, cut into training windows."""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import queue
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from network import HU_RANGE, WINDOW
from torch import Tensor

AIR = 1000.0


def _work(number: int, workers: int, first_seed: int, folder: str, out: Any, on_gpu: int) -> None:
    """Makes phantoms ``first_seed + number``, + ``workers``, ... until killed; ``on_gpu`` of them with cupy."""
    from wetread.bench.phantom import make_phantom

    xp: Any = np
    if on_gpu:
        import cupy as xp  # type: ignore[no-redef,import-not-found]
    else:
        os.nice(5)
    seed, made_here = first_seed + number, 0
    while not on_gpu or made_here < on_gpu:
        while out.qsize() > 24:
            time.sleep(0.5)
        rng = np.random.default_rng([seed, 7])
        shape = (int(rng.integers(170, 281)), int(rng.integers(200, 281)), int(rng.integers(260, 371)))
        made = make_phantom(seed, shape, (1.0, 1.0, 1.0), (6, 22), (3.8, 31.0), xp)
        path = Path(folder) / f"{seed}.npz"
        hu, truth = (made.hu, made.truth) if xp is np else (made.hu.get(), made.truth.get())
        np.savez(path, hu=hu, truth=truth)
        nodules = [(*n.centre_voxel, n.volume_mm3) for n in made.nodules]
        out.put((str(path), nodules, [m[1] for m in made.mimics]))
        seed += workers
        made_here += 1


class Pool:
    """Phantoms on the device, fed by ``workers`` processes; the oldest give way above ``most``. The first worker
    makes its share of the start, ``on_gpu`` phantoms, on the GPU. A nodule of V mm3 weighs (900 / V) to the power
    ``weights[0]``, between 0.6 and ``weights[1]``.
    """

    def __init__(
        self, workers: int, first_seed: int, most: int, on_gpu: int, weights: tuple[float, float]
    ) -> None:
        self.weights = weights
        context = mp.get_context("fork")
        memory = Path("/dev/shm")
        self.folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
        self.ready: Any = context.Queue()
        self.most = most
        self.items: list[tuple[Tensor, Tensor, Tensor, np.ndarray, np.ndarray]] = []
        self.total = 0
        self.processes = [
            context.Process(
                target=_work,
                args=(k, workers, first_seed, self.folder, self.ready, on_gpu if k == 0 else 0),
                daemon=True,
            )
            for k in range(workers)
        ]
        for process in self.processes:
            process.start()

    def refresh(self, device: torch.device, wait: bool = False) -> None:
        """Takes what the workers have finished; with ``wait``, at least one."""
        while True:
            try:
                path, nodules, mimics = self.ready.get(block=wait, timeout=60 if wait else None)
            except queue.Empty:
                return
            wait = False
            with np.load(path) as data:
                hu = torch.from_numpy(data["hu"]).to(device)
                truth = torch.from_numpy(data["truth"]).to(device)
            Path(path).unlink()
            found = np.array(nodules, float).reshape(-1, 4)
            weight = np.ones(256, np.float32)
            weight[1 : len(found) + 1] = np.clip(
                (900 / np.maximum(found[:, 3], 1)) ** self.weights[0], 0.6, self.weights[1]
            )
            table = torch.from_numpy(weight).to(device)
            self.items.append((hu, truth, table, found, np.array(mimics, float).reshape(-1, 3)))
            self.total += 1
            if len(self.items) > self.most:
                self.items.pop(0)

    def stop(self) -> None:
        """Ends the workers and removes what they left."""
        for process in self.processes:
            process.kill()
            process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def _centre(
    rng: np.random.Generator, shape: tuple[int, ...], nodules: np.ndarray, mimics: np.ndarray
) -> np.ndarray:
    """Middle of a window: near a nodule (which a face may cut), near a look-alike, or anywhere."""
    half = np.array(WINDOW) / 2
    luck = rng.random()
    if luck < 0.5 and len(nodules):
        return np.asarray(nodules[rng.integers(len(nodules)), :3] + rng.uniform(-1.02, 1.02, 3) * half)
    if luck < 0.7 and len(mimics):
        return np.asarray(mimics[rng.integers(len(mimics))] + rng.uniform(-0.9, 0.9, 3) * half)
    return rng.uniform([0.05, 0.2, 0.15], [0.95, 0.8, 0.85]) * np.array(shape)


def _warp(rng: np.random.Generator) -> np.ndarray:
    """Matrix from window offsets to phantom offsets, voxels (z, y, x): turns, mirrors, sizes."""
    spin, tilt, lean = rng.normal(0, 0.14), rng.normal(0, 0.07), rng.normal(0, 0.07)

    def turn(a: int, b: int, angle: float) -> np.ndarray:
        m = np.eye(3)
        m[a, a] = m[b, b] = math.cos(angle)
        m[a, b], m[b, a] = -math.sin(angle), math.sin(angle)
        return m

    size = np.exp(rng.normal(0, 0.11) + rng.normal(0, 0.05, 3))
    mirror = np.where(rng.random(3) < [0.3, 0.3, 0.5], -1.0, 1.0)
    return turn(1, 2, spin) @ turn(0, 1, tilt) @ turn(0, 2, lean) @ np.diag(size * mirror)


class Cutter:
    """Cuts warped windows out of the pool."""

    def __init__(self, pool: Pool, device: torch.device, seed: int) -> None:
        self.pool, self.device, self.rng = pool, device, np.random.default_rng(seed)
        lines = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in WINDOW]
        ones = torch.ones(WINDOW, device=device)
        self.offsets = torch.stack([*torch.meshgrid(*lines, indexing="ij"), ones], -1)

    def _draw(self) -> tuple[Any, np.ndarray, tuple[slice, ...]]:
        """A phantom, the 3×4 matrix from window offsets (x, y, z, 1) to its cut's unit cube, and the cut."""
        item = self.pool.items[self.rng.integers(len(self.pool.items))]
        shape = np.array(item[0].shape)
        warp = _warp(self.rng)
        centre = _centre(self.rng, item[0].shape, item[3], item[4])
        reach = np.abs(warp) @ (np.array(WINDOW) / 2) + 2
        low = np.clip(np.floor(centre - reach), 0, shape - 2).astype(int)
        high = np.clip(np.ceil(centre + reach), low + 2, shape).astype(int)
        scale = 2 / (high - low - 1)
        matrix = np.concatenate([warp * scale[:, None], ((centre - low) * scale - 1)[:, None]], 1)
        return item, matrix[::-1], tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))

    def batch(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Network input, target (0 to 1), weight: each (count, 1, D, H, W) float32."""
        drawn = [self._draw() for _ in range(count)]
        matrices = torch.from_numpy(np.stack([d[1] for d in drawn]).astype(np.float32)).to(self.device)
        grids = torch.einsum("dhwk,nik->ndhwi", self.offsets, matrices)
        out = torch.empty((count, 3, *WINDOW), device=self.device)
        for k, ((hu, truth, table, _, _), _, cut) in enumerate(drawn):
            ids = truth[cut]
            mask = (ids > 0).float()
            parts = torch.stack([hu[cut].float() + AIR, mask, table[ids.int()] * mask])[None]
            out[k] = F.grid_sample(parts, grids[k : k + 1], "bilinear", "zeros", align_corners=True)[0]
        target = out[:, 1:2]
        return degrade(out[:, :1] - AIR), target, out[:, 2:3] / target.clamp(min=1e-3)


def _smooth(x: Tensor, sigma: float, axes: tuple[int, ...]) -> Tensor:
    """Gaussian blur along axes, edges replicated."""
    half = max(1, math.ceil(2.5 * sigma))
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-half, half + 1)]
    taps = [t / sum(taps) for t in taps]
    for axis in axes:
        size = x.shape[axis]
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
        wide = torch.cat([*[first] * half, x, *[last] * half], axis)
        x = wide.narrow(axis, 0, size) * taps[0]
        for k, tap in enumerate(taps[1:], 1):
            x.add_(wide.narrow(axis, k, size), alpha=tap)
    return x


def degrade(hu: Tensor) -> Tensor:
    """Another scanner's view of windows (N, 1, D, H, W) in HU, clipped and scaled to [0, 1]."""
    count, device = len(hu), hu.device

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1, 1, device=device).uniform_(low, high)

    hu = hu + (hu - _smooth(hu, 1.0, (3, 4))) * -draw(-0.7, 1.0).clamp(min=-0.7) * (draw(0, 1) < 0.6)
    hu = hu + (_smooth(hu, 1.1, (2,)) - hu) * draw(0, 1) * (draw(0, 1) < 0.4)
    noise = torch.randn_like(hu)
    soft = _smooth(noise, 0.8, (2, 3, 4)) * 4.0
    blend = draw(0, 1)
    level = torch.exp(draw(math.log(2), math.log(60))) * (draw(0, 1) < 0.7)
    hu = hu + (noise * (1 - blend) + soft * blend) * level
    hu = (hu + 1000) * draw(0.95, 1.05) - 1000 + draw(-20, 20)
    low, high = HU_RANGE
    return ((hu - low) / (high - low)).clamp(0, 1)
