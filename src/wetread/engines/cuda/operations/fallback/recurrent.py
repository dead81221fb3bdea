"""Recurrent layers, one step of time after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, operator

F = torch.nn.functional


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    """An activation by ONNX's name, with its parameters or their defaults."""
    a = {"Leakyrelu": 0.01, "HardSigmoid": 0.2}.get(name, 1.0) if alpha is None else alpha
    b = {"HardSigmoid": 0.5, "ScaledTanh": 1.0}.get(name, 0.0) if beta is None else beta
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu, "Softsign": F.softsign,
        "Softplus": F.softplus, "Affine": lambda x: x * a + b, "LeakyRelu": lambda x: F.leaky_relu(x, a),
        "ThresholdedRelu": lambda x: torch.where(x > a, x, torch.zeros_like(x)),
        "ScaledTanh": lambda x: a * torch.tanh(b * x), "HardSigmoid": lambda x: (x * a + b).clamp(0, 1),
        "Elu": lambda x: F.elu(x, a),
    }  # fmt: skip
    return known[name]


def _activations(call: Call, defaults: Sequence[str], direction: int) -> list[Callable[[Tensor], Tensor]]:
    names = call.get("activations") or list(defaults) * 2
    count = len(defaults)
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    with_alpha = ("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu")
    with_beta = ("Affine", "ScaledTanh", "HardSigmoid")
    found = []
    for name in names:  # parameters stand in order, for those that take them
        alpha = float(alphas.pop(0)) if name in with_alpha and alphas else None
        beta = float(betas.pop(0)) if name in with_beta and betas else None
        found.append(_activation(str(name), alpha, beta))
    return found[direction * count : (direction + 1) * count]


Cell = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _run(
    call: Call, x: Tensor, lengths: Given, state: tuple[Tensor, ...], cells: Sequence[Cell]
) -> list[Tensor]:
    """Runs each direction: Y [time, directions, batch, hidden], then each final state [directions, batch, hidden]."""
    if call.get("layout", 0):
        x, state = x.transpose(0, 1), tuple(s.transpose(0, 1) for s in state)
    time = x.shape[0]
    rows: list[list[Tensor]] = []
    last: list[tuple[Tensor, ...]] = []
    for number, cell in enumerate(cells):
        backward = number == 1 or call.get("direction", "forward") == "reverse"
        now = tuple(s[number] for s in state)
        outputs: list[Tensor] = [x] * time
        for t in reversed(range(time)) if backward else range(time):
            new = cell(x[t], now)
            if lengths is not None:  # past the end of a sequence nothing changes, and the output is zero
                alive = (lengths > t)[:, None]
                now = tuple(torch.where(alive, a, b) for a, b in zip(new, now, strict=True))
                outputs[t] = torch.where(alive, new[0], torch.zeros_like(new[0]))
            else:
                now, outputs[t] = new, new[0]
        rows.append(outputs)
        last.append(now)
    y = torch.stack([torch.stack(each) for each in rows], 1)
    finals = [torch.stack([each[k] for each in last]) for k in range(len(state))]
    if call.get("layout", 0):
        return [y.permute(2, 0, 1, 3), *(f.transpose(0, 1) for f in finals)]
    return [y, *finals]


def _bound(call: Call, x: Tensor) -> Tensor:
    clip = call.get("clip")
    return x if clip is None else x.clamp(-float(clip), float(clip))


def _start(call: Call, x: Tensor, given: Given, directions: int, hidden: int) -> Tensor:
    if given is not None:
        return given.to(x.dtype)
    batch = x.shape[0] if call.get("layout", 0) else x.shape[1]
    shape = (batch, directions, hidden) if call.get("layout", 0) else (directions, batch, hidden)
    return torch.zeros(shape, dtype=x.dtype, device=x.device)


@operator("LSTM")
def lstm(  # noqa: PLR0913, PLR0917 - the operator's inputs
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Given = None, lengths: Given = None, h: Given = None,
    c: Given = None, peep: Given = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Long short-term memory; gates stand as input, output, forget, cell."""
    hidden, directions = r.shape[-1], r.shape[0]

    def cell(d: int) -> Cell:
        f, g, out = _activations(call, ("Sigmoid", "Tanh", "Tanh"), d)
        bias = 0 if b is None else b[d, : 4 * hidden] + b[d, 4 * hidden :]
        p = [0, 0, 0] if peep is None else list(peep[d].split(hidden))

        def step(now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            before, kept = state
            gates = now @ w[d].T + before @ r[d].T + bias
            i, o, fo, ce = gates.split(hidden, -1)
            i = f(_bound(call, i + p[0] * kept))
            fo = 1 - i if call.get("input_forget", 0) else f(_bound(call, fo + p[2] * kept))
            kept = fo * kept + i * g(_bound(call, ce))
            o = f(_bound(call, o + p[1] * kept))
            return o * out(kept), kept

        return step

    state = (_start(call, x, h, directions, hidden), _start(call, x, c, directions, hidden))
    return tuple(_run(call, x, lengths, state, [cell(d) for d in range(directions)]))


@operator("GRU")
def gru(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Given = None, lengths: Given = None, h: Given = None
) -> tuple[Tensor, ...]:
    """Gated recurrent unit; gates stand as update, reset, hidden."""
    hidden, directions = r.shape[-1], r.shape[0]

    def cell(d: int) -> Cell:
        f, g = _activations(call, ("Sigmoid", "Tanh"), d)
        zero = torch.zeros(3 * hidden, dtype=x.dtype, device=x.device)
        wb, rb = (zero, zero) if b is None else b[d].split(3 * hidden)

        def step(now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (before,) = state
            xz, xr, xh = (now @ w[d].T + wb).split(hidden, -1)
            rz, rr, rh = r[d].split(hidden)
            bz, br, bh = rb.split(hidden)
            update = f(_bound(call, xz + before @ rz.T + bz))
            reset = f(_bound(call, xr + before @ rr.T + br))
            if call.get("linear_before_reset", 0):
                new = g(_bound(call, xh + reset * (before @ rh.T + bh)))
            else:
                new = g(_bound(call, xh + (reset * before) @ rh.T + bh))
            return ((1 - update) * new + update * before,)

        return step

    state = (_start(call, x, h, directions, hidden),)
    return tuple(_run(call, x, lengths, state, [cell(d) for d in range(directions)]))


@operator("RNN")
def rnn(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Given = None, lengths: Given = None, h: Given = None
) -> tuple[Tensor, ...]:
    """Plain recurrence."""
    hidden, directions = r.shape[-1], r.shape[0]

    def cell(d: int) -> Cell:
        (f,) = _activations(call, ("Tanh",), d)
        bias = 0 if b is None else b[d, :hidden] + b[d, hidden:]
        return lambda now, state: (f(_bound(call, now @ w[d].T + state[0] @ r[d].T + bias)),)

    state = (_start(call, x, h, directions, hidden),)
    return tuple(_run(call, x, lengths, state, [cell(d) for d in range(directions)]))
