"""Trains the network of ``lung-nodule`` on phantoms made while it trains. Needs one CUDA GPU.

README.md beside this file has the commands.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import queue
import sys
import threading
import time
from pathlib import Path

import torch
from network import NoduleNet, parameters
from pool import Cutter, Pool
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))


def loss_of(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Dice of the windows that hold a nodule, and focal cross-entropy over the share that is nodule."""
    logits = logits.float()
    chance = torch.sigmoid(logits)
    weight = torch.where(target > 0, weight, torch.ones_like(weight))
    axes = (1, 2, 3, 4)
    both = (weight * chance * target).sum(axes)
    sizes = (weight * (chance + target)).sum(axes)
    has = (target.sum(axes) > 15).float()
    dice = ((1 - (2 * both + 10) / (sizes + 10)) * has).sum() / has.sum().clamp(min=1)
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = entropy * (chance - target).detach().abs().sqrt() * weight
    cross = focal.sum() / ((weight * target).sum() + 150.0 * len(logits))
    return dice, cross


class Feeder(threading.Thread):
    """Prepares batches ahead, on a stream of its own."""

    def __init__(self, cutter: Cutter, size: int, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.cutter, self.size, self.device = cutter, size, device
        self.batches: queue.Queue[tuple[Tensor, Tensor, Tensor]] = queue.Queue(maxsize=3)
        self.failure: BaseException | None = None

    def run(self) -> None:  # noqa: D102
        stream = torch.cuda.Stream(self.device)
        try:
            with torch.cuda.stream(stream), torch.no_grad():
                while True:
                    self.cutter.pool.refresh(self.device)
                    batch = self.cutter.batch(self.size)
                    stream.synchronize()
                    self.batches.put(batch)
        except BaseException as failure:
            self.failure = failure
            raise

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch, safe to use on the current stream."""
        try:
            batch = self.batches.get(timeout=60)
        except queue.Empty:
            raise RuntimeError("no batch was ready within 60 s") from self.failure
        for part in batch:
            part.record_stream(torch.cuda.current_stream())
        return batch


class Average:
    """Exponential moving average of a network, buffers too."""

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).eval()
        self.steps = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Moves the average toward ``net``; faster in the first steps."""
        self.steps += 1
        keep = min(0.998, (1 + self.steps) / (10 + self.steps))
        for mine, other in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(other, 1 - keep)
            else:
                mine.copy_(other)


def save(
    folder: Path, net: nn.Module, average: Average, optimizer: torch.optim.Optimizer, facts: dict[str, object]
) -> None:
    """Writes ``weights.pt``, ``optimizer.pt`` and ``facts.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"net": net.state_dict(), "average": average.net.state_dict()}, folder / "weights.pt")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def train(options: argparse.Namespace) -> None:  # noqa: PLR0915
    """Trains for ``options.seconds`` of wall time."""
    began = time.time()
    pool = Pool(options.workers, options.first_seed, options.pool, options.on_gpu, tuple(options.weights))
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(options.first_seed)
    net: nn.Module = NoduleNet().to(device, memory_format=torch.channels_last_3d)
    print("parameters", parameters(net), flush=True)
    average = Average(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.peak, weight_decay=2e-4, fused=True)
    if options.resume:
        folder = Path(options.resume)
        weights = torch.load(folder / "weights.pt", map_location=device, weights_only=True)
        net.load_state_dict(weights["net"])
        average.net.load_state_dict(weights["average"])
        average.steps = 10_000
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location=device, weights_only=True))
    net.train()
    run = torch.compile(net) if options.compile else net
    while len(pool.items) < options.start:
        pool.refresh(device, wait=True)
    print(f"{len(pool.items)} phantoms after {time.time() - began:.1f} s", flush=True)
    feeder = Feeder(Cutter(pool, device, options.first_seed + 1), options.batch, device)
    feeder.start()
    step, saved, sums = 0, time.time(), torch.zeros(2, device=device)
    start = time.time()
    while (now := time.time()) - began < options.seconds:
        part = (now - start) / (options.seconds - (start - began))
        warm = min(1.0, (step + 1) / options.warmup)
        rate = options.floor + (options.peak - options.floor) * 0.5 * (1 + math.cos(math.pi * part))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm
        image, target, weight = feeder.take()
        with torch.autocast("cuda", torch.bfloat16):
            logits = run(image.to(memory_format=torch.channels_last_3d))
        dice, cross = loss_of(logits, target, weight)
        optimizer.zero_grad(set_to_none=True)
        (dice + cross).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # such a step is skipped
        optimizer.step()
        average.update(net)
        sums += torch.stack([dice.detach(), cross.detach()])
        step += 1
        if step % 50 == 0:
            mean = (sums / 50).tolist()
            if not math.isfinite(sum(mean)):
                raise RuntimeError(f"the loss is {mean} at step {step}")
            sums.zero_()
            print(
                f"{time.time() - began:6.1f} s step {step} dice {mean[0]:.4f} cross {mean[1]:.4f} rate {rate:.2e} "
                f"phantoms {pool.total} ready {feeder.batches.qsize()}",
                flush=True,
            )
        if time.time() - saved > 90:
            save(Path(options.out), net, average, optimizer, {"steps": step, "phantoms": pool.total})
            saved = time.time()
    facts = {"steps": step, "batch": options.batch, "phantoms": pool.total, "seconds": time.time() - began}
    save(Path(options.out), net, average, optimizer, {**facts, "first_seed": options.first_seed})
    pool.stop()
    print("memory GiB", torch.cuda.max_memory_allocated() / 2**30, facts, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--out", required=True)
    parser.add_argument("--resume")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument(
        "--on-gpu", type=int, default=60, help="phantoms of the start that are made on the GPU"
    )
    parser.add_argument(
        "--weights", type=float, nargs=2, default=(0.5, 4.0), help="power and most, see pool.py"
    )
    parser.add_argument("--first-seed", type=int, default=10_000)
    parser.add_argument("--pool", type=int, default=500)
    parser.add_argument("--start", type=int, default=14)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--floor", type=float, default=2e-4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--compile", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
