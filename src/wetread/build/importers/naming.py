"""Labels that come with a name and no code, as frameworks have them."""

from __future__ import annotations

import re

from wetread.recipe import Code, Label

LESION = re.compile(
    r"lesion|tumou?r|nodul|metasta|cancer|carcinom|neoplas|infarct|h(a?)emorrhag|plaque", re.IGNORECASE
)
"""Names of structures whose components are findings."""
COLOURS = (
    (220, 60, 40), (60, 140, 220), (70, 180, 90), (240, 180, 40), (150, 90, 200), (40, 180, 180),
    (230, 120, 170), (150, 120, 80),
)  # fmt: skip
CATEGORY = Code(value="309825002", scheme="SCT", meaning="Spatial and Relational Concept")
LESION_CATEGORY = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")


def private_label(name: str, index: int, channel: int, scheme: str, threshold: float = 0.5) -> Label:
    """A label whose code is private: its name, in a scheme of its own.

    Args:
        name: as the framework's files have it.
        index: value in the mask.
        channel: output channel.
        scheme: coding scheme designator, such as ``99NNUNET``.
        threshold: probability from which a voxel gets it.
    """
    lesion = bool(LESION.search(name))
    short = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:16] or f"LABEL_{index}"
    return Label(
        index=index,
        name=name[:64],
        channels=(channel,),
        threshold=threshold,
        category=LESION_CATEGORY if lesion else CATEGORY,
        type=Code(value=short, scheme=scheme, meaning=name[:64]),
        color=COLOURS[(index - 1) % len(COLOURS)],
        lesion=lesion,
    )


def slug(text: str) -> str:
    """A recipe's name made of a text."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64]
