"""What became of each layer, in plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wetread.errors import Notice


@dataclass(frozen=True)
class LayerPrecision:
    """The precision of one node, and why.

    Attributes:
        name, operator: of the node.
        precision: ``int8``, ``float8``, ``float16`` or ``float32``.
        reason: in a few words.
        scale: of the activation that the node reads, where that is quantised.
    """

    name: str
    operator: str
    precision: str
    reason: str
    scale: float | None = None


@dataclass(frozen=True)
class PrecisionReport:
    """The precision of a network.

    Attributes:
        layers: every node of the graph that was given, in its order.
        notices: what a person should know, such as ranges that do not fit.
        scales: scale of each quantised tensor, by name.
    """

    layers: tuple[LayerPrecision, ...]
    notices: tuple[Notice, ...] = ()
    scales: dict[str, float] = field(default_factory=dict)

    def of(self, name: str) -> LayerPrecision:
        """The entry of a node.

        Raises:
            KeyError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def counts(self) -> dict[str, int]:
        """How many nodes there are of each precision."""
        found: dict[str, int] = {}
        for layer in self.layers:
            found[layer.precision] = found.get(layer.precision, 0) + 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "layers": [
                {
                    "name": layer.name,
                    "operator": layer.operator,
                    "precision": layer.precision,
                    "reason": layer.reason,
                    "scale": layer.scale,
                }
                for layer in self.layers
            ],
            "notices": [notice.to_json() for notice in self.notices],
            "scales": dict(self.scales),
        }
