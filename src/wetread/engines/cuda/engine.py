"""The CUDA engine: a plan for each shape of windows, kept beside the package; weights shared by all contexts."""

from __future__ import annotations

import logging
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from wetread import __version__
from wetread.engines.base import EngineInfo, LayerRun, TensorInfo
from wetread.engines.common import (
    Closing,
    Port,
    Ports,
    Shape3,
    check_network,
    check_output,
    check_window,
    known_window,
)
from wetread.engines.cuda.cache import stamp
from wetread.engines.cuda.context import CudaContext
from wetread.engines.cuda.device import Device, version
from wetread.engines.cuda.executable import Executable
from wetread.engines.cuda.layers import layers_of
from wetread.engines.cuda.making import LOG, Network, chosen, described, make_plan
from wetread.engines.cuda.plan import SUFFIX, Plan
from wetread.engines.cuda.store import Store
from wetread.errors import EngineError, Notice, OutputError
from wetread.package import Package, ShapeProfile, user_cache

TIMINGS = "cuda-kernels.json"
"""Measured times of kernels, in the user's cache folder; makes the next plan's choices the same, and its making
short, whichever package or graph it is of."""


class CudaEngine(Closing):
    """A network as plans of fused kernels on one GPU.

    Plans are kept in the package's ``engines/<fingerprint>/``, one for each shape of windows; one that is there
    loads without onnx and without a compiler run where the kernels' cache is warm. One that was made for another
    network, GPU, driver or version is refused, and made anew with a notice.

    Args:
        network: what is known of it.
        precision: None takes the graph's own; a float32 graph may be asked for in ``tf32``, ``float16`` or
            ``bfloat16``.
        device: ``cuda``, ``cuda:1``, or ``cpu``, where library kernels run step by step, to debug.
        shapes: windows outside of this profile are refused; None refuses none.
        package: where plans are kept, and whose window is prepared beforehand; None keeps none.
        batch: windows that run at once; smaller groups are filled up, so that a window's numbers never depend on
            its batch. None takes the recipe's, else 1.

    Attributes:
        info, inputs, outputs: see `wetread.engines.base.Engine`.
        notices: what was made, and which plans were refused and why.
        plans: file names of the plans in use, in the package's folder for this device.

    Raises:
        EngineUnavailableError: the GPU or the precision is missing.
        GraphError, UnsupportedOperatorError: the network cannot be lowered; names the node.
    """

    def __init__(
        self,
        network: Network,
        *,
        precision: str | None = None,
        device: str = "cuda",
        shapes: ShapeProfile | None = None,
        package: Package | None = None,
        batch: int | None = None,
    ) -> None:
        check_network(network.inputs, network.outputs)
        self._network = network
        self._device = Device.open(device)
        precision = chosen(precision, network, self._device)
        self.info = EngineInfo("cuda", precision, self._device.name, version())
        self.inputs, self.outputs = network.inputs, network.outputs
        self.notices: list[Notice] = []
        self.plans: tuple[str, ...] = ()
        self._profile = shapes
        self._package = package
        self._folder = package.cache_dir(self.info.fingerprint) if package is not None else None
        self._batch = self._group(batch)
        self._store = Store(self._device.torch)
        self._made: dict[tuple[Shape3, int], Plan] = {}
        self._contexts: weakref.WeakSet[Closing] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        window = self._known_window()
        if window is not None:
            self.plan(window)

    def _group(self, batch: int | None) -> int:
        """Windows at once: what was asked for, else the recipe's; one where the graph's batch is fixed."""
        if batch is not None and batch < 1:
            raise EngineError(f"the batch is {batch}, must be at least 1")
        if any(info.shape[0] is not None for info in self.inputs):
            return 1
        if batch is None:
            return 1 if self._package is None else self._package.recipe.tiling.batch
        return batch

    def _known_window(self) -> Shape3 | None:
        """A window that will be asked for: the profile's, the network's own, or the recipe's."""
        if self._profile is not None:
            return self._profile.opt
        fixed = [size for size in self.inputs[0].shape[2:] if size is not None]
        if len(fixed) == 3:
            return fixed[0], fixed[1], fixed[2]
        return None if self._package is None else self._package.recipe.tiling.window

    @property
    def bytes(self) -> int:
        """Weights on the device, plain and packed; those of the file while no context was made."""
        return self._store.bytes or self._network.bytes

    @property
    def device(self) -> Device:
        """Where the engine runs."""
        return self._device

    def plan(self, shape: Shape3, batch: int | None = None) -> Plan:
        """The plan for windows of this shape: in use, from disk, or made now, which is announced.

        Args:
            shape: D, H, W in voxels.
            batch: windows at once; None takes the engine's.

        Raises:
            EngineError: the network does not take that shape, or the engine is closed.
        """
        shape = check_window(shape, self.inputs, 1, self._profile)
        key = shape, batch or self._batch
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed", where=self._network.where)
            self._device.guard.check()
            if key not in self._made:
                self._made[key] = self._load(*key) or self._make(*key)
            return self._made[key]

    def _provenance(self, shape: Shape3, batch: int) -> dict[str, Any]:
        """What a plan is of and for; all of it is compared when one is loaded."""
        return {
            "network": self._network.sha256,
            "precision": self.info.precision,
            "window": list(shape),
            "batch": batch,
            "wetread": __version__,
            "device": self._device.name,
            # which kernels there are matters where one was chosen; the processor runs the libraries'
            **{k: v for k, v in stamp(self._device.torch).items() if self._device.gpu or k != "kernels"},
        }

    def _name(self, shape: Shape3, batch: int) -> str:
        return f"{self._network.sha256[:16]}-{'x'.join(map(str, shape))}-b{batch}"

    def _load(self, shape: Shape3, batch: int) -> Plan | None:
        """The plan on disk; None where there is none that fits, with a notice of why."""
        name = self._name(shape, batch)
        if self._folder is None or not (self._folder / f"{name}{SUFFIX}").is_file():
            return None
        path = self._folder / f"{name}{SUFFIX}"
        try:
            plan = Plan.load(self._folder, name, self._store.host)
            for key, expected in self._provenance(shape, batch).items():
                if (found := plan.provenance.get(key)) != expected:
                    raise EngineError(f"the plan is for {key} {found}, this is {expected}", where=str(path))
        except EngineError as error:
            self._notice("PLAN_REFUSED", error.what, str(path))
            return None
        self.plans = (*self.plans, path.name)
        LOG.info("plan %s: %s", path.name, described(plan))
        return plan

    def _make(self, shape: Shape3, batch: int) -> Plan:
        """Lowers and tunes, and keeps the plan where there is a folder for it."""
        if self._package is not None:
            self._notice(
                "PLAN_BUILT",
                f"a plan of windows of {shape}, {batch} at once, in {self.info.precision} is made for "
                f"{self._device.name}, where its kernels are timed (minutes, the first time); the gate has to be run "
                "with it",
                self._network.where,
            )
        plan = make_plan(
            self._network, shape, batch, self.info.precision, self._device,
            cache=_timings(), quick=shape != self._known_window(),
            provenance=self._provenance(shape, batch),
        )  # fmt: skip
        level = logging.INFO if self._package is None else logging.WARNING
        LOG.log(level, "plan of %s: %s", self._network.where, described(plan))
        if self._folder is not None:
            try:
                path = plan.save(self._folder, self._name(shape, batch))
            except (OutputError, OSError) as error:
                LOG.warning("the plan could not be kept: %s", error)
            else:
                self.plans = (*self.plans, path.name)
        return plan

    def _notice(self, code: str, text: str, where: str) -> None:
        self.notices.append(Notice(code, text, where))
        LOG.warning("%s: %s [%s]", code, text, where)

    def _ports(self, plan: Plan) -> Ports:
        """What callers may hand over: shapes as the plan has them, the graph's types, and the plan's own."""

        def port(info: TensorInfo, others: tuple[str, ...]) -> Port:
            spec = plan.program.tensors[info.name]
            types = tuple(dict.fromkeys((info.dtype, spec.dtype, *others)))
            return Port(info.name, spec.shape[1:], types)

        return tuple(port(info, ()) for info in self.inputs), tuple(port(info, ()) for info in self.outputs)

    def context(self, shape: tuple[int, int, int], max_batch: int = 1) -> CudaContext:
        """Makes a context for windows of the given spatial shape; may make a plan, which is announced.

        Raises:
            EngineError: the network does not take that shape, or the engine is closed.
            DeviceMemoryError: the context does not fit into the device's memory; others go on.
        """
        window = check_window(shape, self.inputs, max_batch, self._profile)
        plan = self.plan(window)
        made = CudaContext(plan, self._store, self._device, self._ports(plan), max_batch)
        self._contexts.add(made)
        LOG.info("a context of %.1f MiB beside %.1f MiB of weights", made.bytes / 2**20, self.bytes / 2**20)
        return made

    def executable(
        self, shape: Shape3, batch: int = 1, stream: torch.cuda.Stream | None = None
    ) -> Executable:
        """The plan of so many windows at once with an arena of its own, for callers that stay on the device.

        The network's input is ``executable.tensors[engine.inputs[0].name]``, and so on. The caller closes it.

        Raises:
            DeviceMemoryError: it does not fit.
            EngineError: see `plan`.
        """
        made = Executable(self.plan(shape, batch), self._store, self._device, stream=stream)
        self._contexts.add(made)
        return made

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(channels, *spatial) of the first output for one window of the given spatial shape; or (classes,).

        Raises:
            EngineError: the network does not take that shape, or its first output is neither.
        """
        plan = self.plan(check_window(shape, self.inputs, 1, self._profile))
        return check_output(self._ports(plan)[1][0].shape, self.outputs[0].name)

    def layers(self, shape: tuple[int, int, int] | None = None) -> tuple[LayerRun, ...]:
        """The plan's steps; `kernel` says which run wetread's kernels, a library's, or torch.

        Args:
            shape: None takes the window that was prepared first.

        Raises:
            EngineError: no shape is given, fixed or used so far, or the network does not take it.
        """
        with self._lock:
            used = [window for window, _ in self._made]
        window = check_window(known_window(shape, used, self._network.where), self.inputs, 1, self._profile)
        return layers_of(self.plan(window).program)

    def close(self) -> None:
        """Frees contexts that are still open, then the weights; a second call does nothing."""
        with self._lock:
            self._closed = True
        for context in list(self._contexts):
            context.close()
        self._made.clear()
        self._store.clear()


def _timings() -> Path | None:
    """The file of measured times; None where the user's cache cannot be written."""
    folder = user_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder / TIMINGS
    except OSError:
        return None
