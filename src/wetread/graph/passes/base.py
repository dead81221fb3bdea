"""What a pass is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from wetread.graph.passes.network import Network


class Pass(ABC):
    """One kind of rewrite.

    Attributes:
        name: in reports and messages.
        requires: what must hold before it, in words; empty asks nothing.
        ensures: what holds after it, in words.
    """

    name: ClassVar[str]
    requires: ClassVar[str] = ""
    ensures: ClassVar[str] = ""

    @abstractmethod
    def run(self, network: Network) -> None:
        """Rewrites the network in place and reports every site, applied or declined.

        A value that keeps its name keeps its meaning: the check after the pass compares values by name.
        """
