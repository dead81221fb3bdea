"""Which series feeds which channel of a recipe, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from wetread.errors import Notice, SelectionError
from wetread.recipe import Recipe, Selector


@dataclass(frozen=True)
class Candidate:
    """What selection knows of a series or NIfTI file.

    Attributes:
        key: Series Instance UID (with the part, where a series was split) or file name.
        modality: DICOM modality, empty for NIfTI.
        description: Series Description, or the stem of the file.
        sequence: sequence and protocol names.
        body_part: Body Part Examined.
        image_type: values of Image Type.
        number: series number, for the order of equals.
        slices: number of slices.
        slice_spacing_mm: distance between slices, None where the geometry was refused.
        problem: why it cannot be a volume, empty where it can.
        from_file: True for NIfTI.
    """

    key: str
    modality: str = ""
    description: str = ""
    sequence: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    number: int = 0
    slices: int = 0
    slice_spacing_mm: float | None = None
    problem: str = ""
    from_file: bool = False


@dataclass(frozen=True)
class Choice:
    """The candidate for one channel, with the reason for it and those against the others."""

    channel: str
    index: int
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)


def objection(selector: Selector, candidate: Candidate) -> str:
    """Why a candidate does not suit a selector; empty where it does."""
    if candidate.problem:
        return candidate.problem
    if selector.modality and candidate.modality and candidate.modality != selector.modality.upper():
        return f"modality is {candidate.modality}, the recipe wants {selector.modality}"
    rules = (
        ("description", selector.description, candidate.description),
        ("sequence", selector.sequence, candidate.sequence),
        ("body part", selector.body_part, candidate.body_part),
    )
    for name, pattern, value in rules:
        if pattern and not re.search(pattern, value, re.IGNORECASE):
            return f"{name} is {value!r}, the recipe wants {pattern!r}"
    if selector.not_description and re.search(selector.not_description, candidate.description, re.IGNORECASE):
        return f"description {candidate.description!r} is excluded by {selector.not_description!r}"
    missing = [value for value in selector.image_type if value not in candidate.image_type]
    if missing and not candidate.from_file:
        return f"image type {'/'.join(candidate.image_type)} lacks {', '.join(missing)}"
    if candidate.slices < selector.min_slices:
        return f"{candidate.slices} slices, the recipe wants at least {selector.min_slices}"
    limit, spacing = selector.max_slice_spacing_mm, candidate.slice_spacing_mm
    if limit is not None and spacing is not None and spacing > limit + 1e-6:
        return f"slices are {spacing:.2f} mm apart, the recipe allows {limit:g} mm"
    suffix = selector.file_suffix
    if suffix and candidate.from_file and not re.search(f"(?:{suffix})$", candidate.description, re.I):
        return f"file name {candidate.description!r} does not end with {suffix!r}"
    return ""


def _rank(candidate: Candidate) -> tuple[object, ...]:
    """Smaller is better: original before derived, thin slices before thick, many before few, low number."""
    spacing = candidate.slice_spacing_mm if candidate.slice_spacing_mm is not None else 1e9
    original = 0 if candidate.from_file or "ORIGINAL" in candidate.image_type else 1
    return (original, round(spacing, 2), -candidate.slices, candidate.number, candidate.key)


def choose(recipe: Recipe, candidates: Sequence[Candidate]) -> tuple[list[Choice], list[Notice]]:
    """Chooses one candidate for each channel.

    Of several that suit, original images win over derived ones, then thinner slices, then more slices, then
    the lower series number; a notice names those that were left.

    Raises:
        SelectionError: a channel has none; the message gives the reason for each candidate.
    """
    choices: list[Choice] = []
    notices: list[Notice] = []
    alone = len(recipe.channels) == 1 and len(candidates) == 1
    for channel in recipe.channels:
        selector = channel.select
        if alone and candidates[0].from_file:
            # a file that the user named is the channel, whatever it is called
            selector = selector.model_copy(update={"file_suffix": None, "description": None})
        objections = {c.key: objection(selector, c) for c in candidates}
        fitting = [i for i, c in enumerate(candidates) if not objections[c.key]]
        if not fitting:
            reasons = "; ".join(f"{key}: {why}" for key, why in objections.items()) or "the study is empty"
            refused = [c.problem for c in candidates if c.problem]
            raise SelectionError(
                f"no series suits channel {channel.name!r} of {recipe.name}: {reasons}",
                todo="repair the series named"
                if refused
                else "choose another package with -m, or another study",
                code="NO_SERIES",
            )
        best = min(fitting, key=lambda i: _rank(candidates[i]))
        rejected = {candidates[i].key: "ranked behind the chosen one" for i in fitting if i != best}
        rejected |= {key: why for key, why in objections.items() if why}
        others = [candidates[i].key for i in fitting if i != best]
        reason = "the only one that suits" if not others else "original, thinnest slices, most slices"
        if others:
            notices.append(
                Notice(
                    "SERIES_CHOSEN",
                    f"{len(fitting)} series suit channel {channel.name!r}; chosen for original images, thin "
                    f"slices, number of slices; not read: {', '.join(others)}",
                    candidates[best].key,
                )
            )
        choices.append(Choice(channel.name, best, reason, rejected))
    used = [choice.index for choice in choices]
    if len(set(used)) != len(used):
        twice = candidates[next(i for i in used if used.count(i) > 1)].key
        raise SelectionError(
            f"one series would feed two channels of {recipe.name}",
            where=twice,
            todo="make the recipe's selectors more specific",
            code="AMBIGUOUS_SERIES",
        )
    return choices, notices
