"""The configuration language of MONAI bundles, read without executing anything.

MONAI builds objects and evaluates Python as it reads a configuration. Here a ``_target_`` stays a `Component`
with its arguments, references (``@id``) and macros (``%file::id``) are followed, and expressions (``$...``) are
computed where they are literals, arithmetic, lists and references. Any other expression becomes `Unknown`: that
is an error only where somebody needs its value, so that devices, handlers and loaders do no harm.

The language is described in MONAI's documentation, "Bundle configuration".
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wetread.errors import RecipeError

Evaluate = Callable[[str], Any]
"""Evaluates the entry of an id with MONAI's own parser, which executes Python."""

_REFERENCE = re.compile(r"@([\w:]*\w)")
_STAND_IN = re.compile(r"^__reference_(\d+)__$")
_DEEPEST = 64
_MOST = 1_000_000
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "len": len, "int": int, "float": float, "str": str, "bool": bool,
    "list": list, "tuple": tuple, "min": min, "max": max, "abs": abs, "round": round,
}  # fmt: skip


@dataclass(frozen=True)
class Unknown:
    """An expression that is not computed.

    Attributes:
        text: as it stands in the configuration.
        where: file and key.
    """

    text: str
    where: str


@dataclass(frozen=True)
class Component:
    """An object that MONAI would build.

    Attributes:
        target: class or function, as the configuration names it.
        arguments: keywords, resolved; values may be `Unknown` or components.
        where: file and key, such as ``configs/inference.json: inferer``.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def name(self) -> str:
        """The last part of the target's dotted name."""
        return self.target.rsplit(".", 1)[-1]

    def get(self, key: str, default: Any = None) -> Any:
        """An argument that must be known, or the default.

        Raises:
            RecipeError: it is an expression that is not computed, or holds one.
        """
        return known(self.arguments.get(key, default))


class Config:
    """One configuration.

    Args:
        data: as JSON or YAML gave it.
        where: its file's name, for messages.
        others: further configurations of the bundle by file name, for macros.
        evaluate: computes what is `Unknown`; only where the user trusts the bundle.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        where: str,
        others: Mapping[str, Mapping[str, Any]] | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.data = data
        self.where = where
        self._others = others or {}
        self._evaluate = evaluate
        self._steps = 0

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def get(self, key: str, default: Any = None) -> Any:
        """The resolved value of a top-level key; may be, or hold, `Unknown` and `Component`.

        Raises:
            RecipeError: a reference leads nowhere or in a circle; names the key.
        """
        return self._value(self.data[key], key, 0) if key in self.data else default

    def _value(self, node: Any, key: str, depth: int) -> Any:
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST:
            raise RecipeError(
                "references lead in a circle, or are nested without end", where=f"{self.where}: {key}"
            )
        if isinstance(node, Mapping):
            if "_target_" in node:
                return self._component(node, key, depth)
            return {name: self._value(item, f"{key}::{name}", depth + 1) for name, item in node.items()}
        if isinstance(node, list):
            found = [self._value(item, f"{key}::{i}", depth + 1) for i, item in enumerate(node)]
            return [item for item in found if item is not _DISABLED]
        if isinstance(node, str):
            return self._text(node, key, depth)
        return node

    def _component(self, node: Mapping[str, Any], key: str, depth: int) -> Any:
        disabled = self._value(node.get("_disabled_", False), f"{key}::_disabled_", depth + 1)
        if known(disabled) in (True, "true", "True"):
            return _DISABLED
        target = self._value(node["_target_"], f"{key}::_target_", depth + 1)
        where = f"{self.where}: {key}"
        if not isinstance(target, str):
            raise RecipeError(f"the class is {node['_target_']!r}, expected a name", where=where)
        return Component(
            target,
            {
                name: self._value(item, f"{key}::{name}", depth + 1)
                for name, item in node.items()
                if not (name.startswith("_") and name.endswith("_"))
            },
            where,
        )

    def _text(self, text: str, key: str, depth: int) -> Any:
        text_ = text.replace("#", "::") if text[:1] in "@%" else text
        if text_.startswith("%"):
            return self._macro(text_[1:], key, depth)
        if text_.startswith("@") and _REFERENCE.fullmatch(text_):
            return self._reference(text_[1:], key, depth)
        if text_.startswith("$"):
            found = self._expression(text_[1:], key, depth)
            function = text_[1:].lstrip().startswith("lambda")  # told by its text, never by calling it
            if isinstance(found, Unknown) and self._evaluate is not None and not function:
                return self._evaluate(key)
            return found
        return text

    def _macro(self, target: str, key: str, depth: int) -> Any:
        """``%id`` of this configuration, or ``%file::id`` of another; the text is put in place, then resolved."""
        file, _, rest = target.partition("::")
        name = file.rsplit("/", 1)[-1]
        if name in self._others:
            other = Config(self._others[name], name, self._others, None)
            return (
                other._reference(rest, key, depth) if rest else other._value(dict(other.data), "", depth + 1)
            )
        return self._reference(target, key, depth)

    def _reference(self, target: str, key: str, depth: int) -> Any:
        """The entry of an id; ids that begin with separators count from where they stand."""
        parts = key.split("::")
        if target.startswith("::"):
            up = (len(target) - len(target.lstrip(":"))) // 2
            parts = [*parts[: len(parts) - up], *target.lstrip(":").split("::")]
        else:
            parts = target.split("::")
        node: Any = self.data
        for part in parts:
            if isinstance(node, Mapping) and part in node:
                node = node[part]
            elif (
                isinstance(node, list) and part.lstrip("-").isdigit() and -len(node) <= int(part) < len(node)
            ):
                node = node[int(part)]
            elif isinstance(node, str) and node[:1] in "@%$":
                node = self._step(self._value(node, key, depth + 1), part)
            else:
                raise RecipeError(
                    f"the reference @{target} leads nowhere: there is no {part!r}",
                    where=f"{self.where}: {key}",
                    todo="complete the bundle's configuration",
                )
        return self._value(node, "::".join(parts), depth + 1)

    def _step(self, value: Any, part: str) -> Any:
        if isinstance(value, Component):
            return value.arguments.get(part)
        if isinstance(value, list) and part.isdigit():
            return value[int(part)]
        return value.get(part) if isinstance(value, dict) else value

    def _expression(self, text: str, key: str, depth: int) -> Any:
        references: list[str] = []

        def stand_in(match: re.Match[str]) -> str:
            references.append(match.group(1))
            return f"__reference_{len(references) - 1}__"

        unknown = Unknown(f"${text}", f"{self.where}: {key}")
        try:
            tree = ast.parse(_REFERENCE.sub(stand_in, text.replace("#", "::")).strip(), mode="eval")
            return self._compute(tree.body, references, key, depth)
        except (SyntaxError, _NotComputedError, TypeError, ValueError, LookupError, ZeroDivisionError):
            return unknown

    def _compute(self, node: ast.expr, references: list[str], key: str, depth: int) -> Any:
        def one(inner: ast.expr) -> Any:
            value = self._compute(inner, references, key, depth)
            if isinstance(value, Unknown):
                raise _NotComputedError
            return value

        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List | ast.Tuple):
            return [one(item) for item in node.elts]
        if isinstance(node, ast.Dict):
            return {one(k): one(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        if isinstance(node, ast.Name) and (place := _STAND_IN.match(node.id)):
            return self._reference(references[int(place.group(1))], key, depth + 1)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](one(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = one(node.left), one(node.right)
            if isinstance(node.op, ast.Mult) and max(_size(left), _size(right)) > 10_000:
                raise _NotComputedError
            return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
            return _OPERATORS[type(node.ops[0])](one(node.left), one(node.comparators[0]))
        if isinstance(node, ast.IfExp):
            return one(node.body) if one(node.test) else one(node.orelse)
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
            return one(node.value)[one(node.slice)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            return _CALLS[node.func.id](
                *(one(item) for item in (*node.args, *(k.value for k in node.keywords)))
            )
        raise _NotComputedError


class _NotComputedError(Exception):
    """An expression is more than literals, arithmetic and references."""


_DISABLED = object()


def _size(value: Any) -> float:
    """Length of a sequence, or magnitude of a number: what a multiplication could blow up to."""
    return abs(value) if isinstance(value, int | float) else len(value)


def known(value: Any) -> Any:
    """The value itself.

    Raises:
        RecipeError: it is an expression that is not computed, or holds one.
    """
    for found in _unknowns(value):
        raise RecipeError(
            f"the expression {found.text!r} matters here and is not computed, because that would execute it",
            where=found.where,
            todo="write the value in its place, or say --trust if you know who made this bundle",
            code="NEEDS_TRUST",
        )
    return value


def _unknowns(value: Any) -> Iterator[Unknown]:
    if isinstance(value, Unknown):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _unknowns(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _unknowns(item)
