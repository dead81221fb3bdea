"""What follows a convolution, a norm or a resize goes into it: residual, activation, softmax, sums of a norm.

Each rule takes two steps of which the second is the first one's only reader (or, for sums, reads what stays), so
nothing else sees the value that is not written any more.
"""

from __future__ import annotations

from wetread.engines.cuda.lower.edit import (
    EIGHT,
    Uses,
    activation_of,
    bare,
    drop,
    fused,
    is_add,
    merged,
    put,
    repeat,
    sloped,
)
from wetread.engines.cuda.program import Program, Step
from wetread.kernels.hopper import march

HEAD = 16
"""Output channels below which a 1×1×1 convolution is a head: one program holds all of a voxel's classes."""


def residual(program: Program) -> None:
    """Y = conv(x) + r, norm(x) + r, norm(x) + norm(r), resize(x) + r in one step each.

    The later of the two summands takes the other one, which is then ready.
    """
    repeat(program, _residual)


def _residual(program: Program, uses: Uses, add: Step) -> bool:
    if not is_add(add) or add.inputs["0"] == add.inputs["1"]:
        return False
    shape = program.spec(add.outputs["y"]).shape
    if any(n not in program.tensors or program.spec(n).shape != shape for n in add.inputs.values()):
        return False
    found = [(name, maker) for name in add.inputs.values() if (maker := _summand(program, uses, name, add))]
    if not found:
        return False
    name, maker = max(found, key=lambda pair: uses.position[pair[1].name])
    other = next(n for n in add.inputs.values() if n != name)
    if program.spec(other).dtype in EIGHT:
        return False
    inputs, gone = {**maker.inputs, "residual": other}, [maker]
    second = next((m for n, m in found if n == other), None)
    if maker.op == "norm" and second is not None and second.op == "norm" and _alike(maker, second):
        inputs |= {"residual": second.inputs["x"], "residual_sums": second.inputs["sums"]}
        inputs |= {f"residual_{r}": second.inputs[r] for r in ("gamma", "beta") if r in second.inputs}
        gone.append(second)
    put(
        program,
        merged(maker, add, inputs=inputs, outputs={**maker.outputs, "y": add.outputs["y"]}),
        add,
        gone,
    )
    return True


def _summand(program: Program, uses: Uses, name: str, add: Step) -> Step | None:
    """The step that writes a summand and can add the other one itself."""
    maker = uses.maker(name)
    if maker is None or maker.op not in ("conv", "norm", "resize") or not uses.only(name, add):
        return None
    free = bare(maker) and "residual" not in maker.inputs and "sums" not in maker.outputs
    return maker if free and maker.outputs["y"] == name else None


def _alike(a: Step, b: Step) -> bool:
    return all(a.attributes[k] == b.attributes[k] for k in ("eps", "groups"))


def activation(program: Program) -> None:
    """An activation that kernels have in their epilogues."""
    repeat(program, _activation)


def _activation(program: Program, uses: Uses, step: Step) -> bool:
    found = activation_of(step)
    if found is None or not fused(found):
        return False
    x = step.inputs["0"]
    maker = uses.maker(x)
    if maker is None or maker.op not in ("conv", "norm", "upconv", "resize") or not uses.only(x, step):
        return False
    if not bare(maker) or "sums" in maker.outputs or maker.outputs["y"] != x:
        return False
    if not sloped(found) and marches(program, maker):
        return False
    put(program, merged(maker, step, outputs={**maker.outputs, "y": step.outputs["y"]}, activation=dict(found)),
        maker, [step])  # fmt: skip
    return True


def marches(program: Program, step: Step) -> bool:
    """Whether kernel march takes a convolution: it knows ReLU and leaky ReLU alone, but gains more than a pass."""
    if step.op != "conv":
        return False
    a, x, weight = step.attributes, program.spec(step.inputs["x"]), program.spec(step.inputs["weight"]).shape
    plain = (
        list(a["stride"]) == [1] * 3 == list(a["dilation"])
        and list(a["pads"]) == [1] * 6
        and a["groups"] == 1
    )
    channels = [program.spec(step.inputs[role]).shape[1] for role in ("x", "x2") if role in step.inputs]
    return plain and tuple(weight[2:]) == (3, 3, 3) and march.applies(channels, weight[0], x.torch_dtype)


def softmax(program: Program) -> None:
    """Softmax over the classes of a head."""
    repeat(program, _softmax)


def _softmax(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "softmax":
        return False
    x, shape = step.inputs["x"], program.spec(step.inputs["x"]).shape
    maker = uses.maker(x)
    if int(step.attributes.get("axis", -1)) % len(shape) != 1 or maker is None or not uses.only(x, step):
        return False
    if maker.op != "conv" or not bare(maker) or "sums" in maker.outputs or not is_head(program, maker):
        return False
    put(program, merged(maker, step, outputs={"y": step.outputs["y"]}, softmax=True), maker, [step])
    return True


def is_head(program: Program, step: Step) -> bool:
    """Whether a step is a 1×1×1 convolution to a few classes."""
    if step.op != "conv" or "x2" in step.inputs or step.attributes["groups"] != 1:
        return False
    a, weight = step.attributes, program.spec(step.inputs["weight"]).shape
    plain = list(a["stride"]) == [1] * 3 and not any(a["pads"])
    return plain and tuple(weight[2:]) == (1, 1, 1) and weight[0] < HEAD


def shared_statistics(program: Program) -> None:
    """Norms of the same tensor share its sums."""
    repeat(program, _shared)


def _shared(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "stats":
        return False
    for other in program.steps[: uses.position[step.name]]:
        if other.op == "stats" and other.inputs["x"] == step.inputs["x"]:
            old, new = step.outputs["sums"], other.outputs["sums"]
            drop(program, step)
            for reader, role in uses.readers(old):
                put(program, merged(reader, reader, inputs={**reader.inputs, role: new}), reader)
            return True
    return False


def statistics(program: Program) -> None:
    """The sums of a norm are added up by what writes its input."""
    repeat(program, _statistics)


def _statistics(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "stats":
        return False
    x = step.inputs["x"]
    maker = uses.maker(x)
    if maker is None or maker.op not in ("conv", "resize") or maker.outputs["y"] != x:
        return False
    if not bare(maker, activation=True) or "sums" in maker.outputs:
        return False
    outputs = {**maker.outputs, "sums": step.outputs["sums"]}
    put(program, merged(maker, step, outputs=outputs), maker, [step])
    return True


def lost_bias(program: Program) -> None:
    """A constant added to a channel is taken away again by an instance norm, if nothing else reads the sum."""
    repeat(program, _lost_bias)


def _lost_bias(program: Program, uses: Uses, step: Step) -> bool:
    if step.op != "conv" or "bias" not in step.inputs or "sums" not in step.outputs:
        return False
    y, sums = step.outputs["y"], step.outputs["sums"]
    if not bare(step) or uses.is_output(y):
        return False
    channels = program.spec(y).shape[1]
    for reader, role in uses.readers(y):
        own = {"x": "sums", "residual": "residual_sums"}.get(role)
        if reader.op != "norm" or own is None or reader.inputs.get(own) != sums:
            return False
        if reader.attributes["groups"] != channels or reader.inputs[role] != y:
            return False
    put(program, merged(step, step, inputs={k: v for k, v in step.inputs.items() if k != "bias"}), step)
    return True
