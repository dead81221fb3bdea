"""Axis order and direction: views, never copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GeometryError
from wetread.volume import Grid

_PAIRS = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class Orientation:
    """A permutation and flips that take arrays from one order of axes to another and back.

    Attributes:
        axes: for each new axis, which old axis it is.
        flips: for each new axis, whether it runs backwards.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def between(cls, codes: str, wanted: str) -> Orientation:
        """From axes that increase towards ``codes`` to axes that increase towards ``wanted``.

        Raises:
            GeometryError: a code does not name each of L/R, P/A and S/I once.
        """
        for text in (codes, wanted):
            if sorted(_PAIRS.get(letter, 3) for letter in text) != [0, 1, 2]:
                raise GeometryError(f"axis codes {text!r} do not name each patient axis once")
        pairs = [_PAIRS[letter] for letter in codes]
        axes = tuple(pairs.index(_PAIRS[letter]) for letter in wanted)
        flips = tuple(codes[axis] != letter for axis, letter in zip(axes, wanted, strict=True))
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def of_grid(cls, grid: Grid, wanted: str) -> Orientation:
        """From a source grid to what a recipe wants: axis codes, or axes of the file such as ``kji``.

        Raises:
            GeometryError: ``wanted`` is neither.
        """
        if sorted(wanted) == ["i", "j", "k"]:
            a, b, c = (grid.file_axes.index(letter) for letter in wanted)
            return cls((a, b, c), (False, False, False))
        return cls.between(grid.axis_codes, wanted)

    @property
    def identity(self) -> bool:
        """True where nothing changes."""
        return self.axes == (0, 1, 2) and not any(self.flips)

    @property
    def _directions(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """View of ``(..., a, b, c)`` in the new order."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        view: NDArray[Any] = turned[self._directions]
        return view

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """View of ``(..., a, b, c)`` in the old order."""
        lead = array.ndim - 3
        turned: NDArray[Any] = array[self._directions]
        return turned.transpose(*range(lead), *(lead + self.axes.index(axis) for axis in range(3)))

    def grid(self, grid: Grid) -> Grid:
        """The grid of an array to which `apply` was put; slices are kept where axis 0 stays axis 0."""
        affine = np.eye(4)
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            column = grid.affine[:3, old]
            affine[:3, new] = -column if flip else column
        first = np.zeros(3)
        for old, flip in zip(self.axes, self.flips, strict=True):
            first[old] = grid.shape[old] - 1 if flip else 0
        affine[:3, 3] = grid.world(first)
        shape = tuple(grid.shape[axis] for axis in self.axes)
        slices = grid.slices if self.axes[0] == 0 else ()
        return Grid(
            (shape[0], shape[1], shape[2]),
            affine,
            grid.frame_of_reference,
            slices[::-1] if self.flips[0] else slices,
        )


def orient(array: NDArray[Any], grid: Grid, codes: str) -> tuple[NDArray[Any], Grid]:
    """View of an array ``(..., a, b, c)`` and its grid with axes that increase towards ``codes``.

    Raises:
        GeometryError: codes do not name each patient axis once.
    """
    orientation = Orientation.between(grid.axis_codes, codes)
    return orientation.apply(array), orientation.grid(grid)
