"""Weights of an engine: each held once on the device, however many contexts, windows and batches use it.

Weights are known by the hash of their content. Those that kernels read as they are stay on the device as long as a
context uses them; those that kernels read packed are there only while they are packed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils.weak import WeakIdKeyDictionary

from wetread.engines.cuda.operations import Packs
from wetread.engines.cuda.plan import Plan, digest

Tensor: TypeAlias = torch.Tensor


class Store:
    """What the contexts of an engine share.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host: dict[str, Tensor] = {}
        """Weights by the hash of their content; what `Plan.load` takes as ``shared``."""
        self.lock = threading.RLock()
        self._packed: dict[tuple[Any, ...], Any] = {}
        self._placed: weakref.WeakValueDictionary[tuple[Any, ...], Tensor] = weakref.WeakValueDictionary()
        self._digests: Any = WeakIdKeyDictionary()

    def weights(self, plan: Plan) -> Mapping[str, Tensor]:
        """The plan's weights; each is put on the device when it is looked up, and lives as long as someone keeps it."""
        return _Weights(self, plan.program.weights)

    def place(self, weight: Tensor) -> Tensor:
        """One weight on the device."""
        with self.lock:
            key = (self._digest(weight), tuple(weight.stride()))
            found = self._placed.get(key)
            if found is None:
                found = weight.to(self.device)
                self._placed[key] = found
            return found

    def _digest(self, weight: Tensor) -> str:
        if weight not in self._digests:
            known = {id(value): key.split(" ")[0] for key, value in self.host.items()}
            self._digests[weight] = known.get(id(weight)) or digest(weight)
        found: str = self._digests[weight]
        return found

    def packs(self, plan: Plan) -> Packs:
        """Where the plan's kernels keep what they pack: by the content of the weights that they name."""
        with self.lock:
            return _Shared(
                self._packed, {n: self._digest(w) for n, w in plan.program.weights.items()}, self.lock
            )

    @property
    def bytes(self) -> int:
        """Bytes on the device, packed and plain."""
        with self.lock:
            found: dict[int, int] = {}
            for tensor in (*self._placed.values(), *_tensors(list(self._packed.values()))):
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            return sum(found.values())

    def clear(self) -> None:
        """Forgets everything; what contexts still hold lives until they close."""
        with self.lock:
            self._packed.clear()
            self._placed.clear()
            self.host.clear()


class _Weights(Mapping[str, Tensor]):
    """A plan's weights, put on the device one by one as its steps are prepared."""

    def __init__(self, store: Store, host: Mapping[str, Tensor]) -> None:
        self._store = store
        self._host = host

    def __getitem__(self, name: str) -> Tensor:
        return self._store.place(self._host[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)


class _Shared(Packs):
    """The packs of one plan, kept under hashes in place of names, so that plans share them."""

    def __init__(self, made: dict[tuple[Any, ...], Any], names: Mapping[str, str], lock: Any) -> None:
        super().__init__(made)
        self._names = names
        self._lock = lock

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        with self._lock:
            return super().get(self._content(key), make)

    def _content(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return tuple(self._content(part) for part in key)
        return self._names.get(key, key) if isinstance(key, str) else key


def _tensors(values: Any) -> list[Tensor]:
    """Tensors in nested tuples, lists and mappings."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in _tensors(value)]
    return [values] if hasattr(values, "untyped_storage") else []
