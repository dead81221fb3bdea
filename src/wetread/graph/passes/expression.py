"""Values as expressions: which ones a pass changed, and which of those are equal by structure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterator
from typing import Any

import onnx_ir as ir


class Contents:
    """Constants known by their content, so that renaming or lifting them changes nothing. Hashed once each."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Hashable]] = {}

    def key(self, value: ir.Value) -> Hashable | None:
        """Type, shape and digest of a constant; None for what is computed."""
        if value.is_graph_input():
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return None
        if id(tensor) not in self._known:
            digest = hashlib.blake2b(tensor.tobytes(), digest_size=16).digest()
            key = ("constant", str(tensor.dtype), tuple(tensor.shape.numpy()), digest)
            self._known[id(tensor)] = (tensor, key)  # the tensor is kept, so that its id stays its own
        return self._known[id(tensor)][1]


class View:
    """One state of a network, its values by name.

    Args:
        model: not changed while the view is in use.
        contents: shared by the views that are compared.

    Attributes:
        values: every value by name.
        constants: content of those that are constants.
        assumed: computed values that the other side has as constants. Each is checked by itself; where others
            read it, it counts as that constant.
    """

    def __init__(self, model: ir.Model, contents: Contents) -> None:
        self.model = model
        self._contents = contents
        self.values: dict[str, ir.Value] = {str(v.name): v for v in model.graph.inputs}
        self.constants: dict[str, Hashable] = {}
        for value in _values(model):
            name = str(value.name)
            self.values[name] = value
            if (key := contents.key(value)) is not None:
                self.constants[name] = key
        self.assumed: dict[str, ir.Value] = {}
        self._common: Collection[str] = ()
        self._first: dict[Hashable, str] = {}
        self._seen: dict[str, Hashable] = {}

    def compare_on(self, common: Collection[str]) -> None:
        """Prepares `definition`: `common` are the computed values that both sides have."""
        self._common, self._first, self._seen = common, {}, {}
        for name, value in self.values.items():  # in the graph's order, so that recursion stays shallow
            definition = self.definition(value)
            if name in common:
                self._first.setdefault(definition, name)

    def definition(self, value: ir.Value) -> Hashable:
        """The node that writes a value, with its inputs as expressions over common values and constants.

        Identity nodes are what they are; of common values with the same definition the first stands for all.
        """
        name = str(value.name)
        if name not in self._seen:
            node = value.producer()
            if node is None:
                self._seen[name] = ("input", name)
            elif (node.domain, node.op_type) == ("", "Identity"):
                self._seen[name] = self._same(node.inputs[0])
            else:
                attributes = tuple(sorted((key, _freeze(a)) for key, a in node.attributes.items()))
                inputs = tuple(self._reference(i) for i in node.inputs)
                kind = (node.domain, node.op_type, node.overload)
                # hashing nested tuples again and again would take quadratic time: digest them level by level
                text = repr((kind, attributes, inputs, value.index())).encode()
                self._seen[name] = hashlib.blake2b(text, digest_size=16).digest()
        return self._seen[name]

    def _same(self, source: ir.Value | None) -> Hashable:
        """Definition of an Identity node's output: that of its input."""
        if source is None or str(source.name) in self.constants or source.producer() is None:
            return ("same", self._reference(source))
        return self.definition(source)

    def _reference(self, value: ir.Value | None) -> Hashable:
        if value is None:
            return None
        while (node := value.producer()) is not None and (node.domain, node.op_type) == ("", "Identity"):
            value = node.inputs[0]
            if value is None:
                return None
        name = str(value.name)
        if (key := self.constants.get(name)) is not None:
            return key
        if (other := self.assumed.get(name)) is not None:
            return self._contents.key(other)
        if name in self._common:
            return ("value", self._first.get(self.definition(value), name))
        definition = self.definition(value)
        return ("value", self._first[definition]) if definition in self._first else definition


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from (value for value in node.outputs if value.name)


def _freeze(attribute: ir.Attr) -> Hashable:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return hashlib.blake2b(value.tobytes()).hexdigest(), str(value.dtype), tuple(value.shape.numpy())
    return repr(value)


def changed(before: View, after: View) -> list[str]:
    """Values of both sides that are not defined alike, in the order of `after`.

    By induction along the graph it is enough that these are equal as functions of values that both sides have.
    """
    for mine, other in ((before, after), (after, before)):
        mine.assumed = {
            n: other.values[n] for n in other.constants if n in mine.values and n not in mine.constants
        }
    common = {
        name
        for name in after.values
        if name in before.values and name not in before.constants and name not in after.constants
    }
    before.compare_on(common)
    after.compare_on(common)
    found = []
    for name, value in after.values.items():
        if name not in before.values or (name in before.constants and name in after.constants):
            continue  # constants count where they are read, by their content
        folded = name in after.constants or name in before.constants
        if folded or before.definition(before.values[name]) != after.definition(value):
            found.append(name)
    return found
