"""A package as a model repository for NVIDIA Triton.

Triton runs windows; it knows nothing of studies. What a client has to do before and after (preprocessing, tiling,
blending, labels) is the recipe's, which is written beside each model.

::

    <repository>/<name>/config.pbtxt            schema: model_config.proto of triton-inference-server/common
                        labels.txt              one name for each output channel
                        recipe.json
                        <version>/model.onnx    standard operators only; or model.plan

A package with folds gives a model for each, and an ensemble that sends one window to all of them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wetread.build.triton_config import TritonConfig, TritonStep, TritonTensor, ensemble_text, model_text
from wetread.errors import OutputError, PackageError
from wetread.graph import Graph
from wetread.package import ModelEntry, Package, bytes_sha256
from wetread.recipe import Recipe

TritonBackend = Literal["onnxruntime", "openvino", "tensorrt"]


@dataclass(frozen=True)
class TritonOptions:
    """How the models are served.

    Attributes:
        backend: which of Triton's backends runs them; the package's gate must have passed on it.
        max_batch: largest batch that Triton may form of windows, for networks whose batch axis is free.
        queue_delay_us: microseconds that a window waits for others to form a batch; None forms none.
        instances: copies of each model that run at once.
        plans: tensorrt: folder that holds the plans; None takes the package's own ``engines`` folder.
        override_gate: export although the gate was not passed; written into the configuration.
        force: replace models of the same name.
    """

    backend: TritonBackend = "onnxruntime"
    max_batch: int = 4
    queue_delay_us: int | None = None
    instances: int = 1
    plans: Path | None = None
    override_gate: bool = False
    force: bool = False


def export_triton(package: Package, out: Path, options: TritonOptions | None = None) -> tuple[Path, ...]:
    """Writes a package into a model repository.

    Each model's folder is written under a hidden name and then moved into place. The same package and options
    give the same bytes.

    Args:
        package: its networks, each stage and fold.
        out: the repository; made if need be, other models in it are left alone.
        options: how they are served.

    Returns:
        Folders of the models, the one that clients ask last.

    Raises:
        GateError: the package did not pass its gate on this backend in its precision, and there is no override.
        PackageError: a model of that name is there already, an option is out of range, or there is no plan.
        GraphError: a network cannot be read.
        OutputError: the repository cannot be written.
    """
    options = options or TritonOptions()
    _check(options)
    models: dict[str, dict[str, bytes]] = {}
    stages: dict[int, list[TritonConfig]] = {}
    for i, entry in enumerate(package.models):
        config, content = _model(package, i, entry, options)
        stages.setdefault(entry.stage, []).append(config)
        models[config.name] = content
    for stage, members in stages.items():
        if len(members) > 1:
            name = package.name if len(stages) == 1 else f"{package.name}_stage{stage}"
            models[name] = _ensemble(package, name, members)
    return _write(out, models, options.force)


def model_version(version: str) -> int:
    """Triton's version number of a package's: ``1.2.3`` is 1002003, so that later ones are greater."""
    major, minor, patch = (int(part) for part in version.split("."))
    if max(minor, patch) > 999:
        raise PackageError(
            f"version {version} has no number for Triton: minor and patch must be below 1000",
            where="recipe.json",
        )
    return max(1, major * 1_000_000 + minor * 1000 + patch)


def _check(options: TritonOptions) -> None:
    for name, least in (("max_batch", 1), ("instances", 1)):
        if getattr(options, name) < least:
            raise PackageError(f"{name} is {getattr(options, name)}, must be at least {least}")
    if options.queue_delay_us is not None and options.queue_delay_us < 0:
        raise PackageError(f"queue_delay_us is {options.queue_delay_us}, must not be negative")


def _model(
    package: Package, i: int, entry: ModelEntry, options: TritonOptions
) -> tuple[TritonConfig, dict[str, bytes]]:
    """Configuration and files of one network."""
    graph = Graph.load(package.model_path(i)).inlined()
    content = graph.to_bytes()
    file, fingerprint = "model.onnx", ""
    if options.backend == "tensorrt":
        file = "model.plan"
        content, fingerprint = _plan(package, bytes_sha256(content), options)
    verdict = package.check_gate(options.backend, entry.precision, options.override_gate, fingerprint)
    # plans are built for one window at a time; Triton's own batch axis needs one that is free
    batched = options.backend != "tensorrt" and all(
        t.shape[0] is None for t in (*graph.inputs, *graph.outputs)
    )
    single = len(package.models) == 1
    config = TritonConfig(
        name=package.name if single else f"{package.name}_stage{entry.stage}_fold{entry.fold}",
        backend=options.backend,
        file=file,
        max_batch=options.max_batch if batched else 0,
        inputs=tuple(_tensor(t.name, t.shape, t.dtype, batched) for t in graph.inputs),
        outputs=tuple(_tensor(t.name, t.shape, t.dtype, batched) for t in graph.outputs),
        instances=options.instances,
        queue_delay_us=options.queue_delay_us if batched else None,
        parameters={
            "wetread_package": f"{package.name} {package.version}",
            "wetread_hash": package.hash,
            "wetread_precision": entry.precision,
            "wetread_gate": verdict.text,
            "wetread_recipe": "recipe.json",
            "wetread_intended_use": package.recipe.intended_use,
        },
    )
    return config, {
        "config.pbtxt": model_text(config).encode(),
        "labels.txt": "".join(f"{name}\n" for name in channel_names(package.recipe, graph)).encode(),
        "recipe.json": (package.path / "recipe.json").read_bytes(),
        f"{model_version(package.version)}/{file}": content,
    }


def _tensor(name: str, shape: Sequence[int | None], dtype: str, batched: bool) -> TritonTensor:
    dims = tuple(-1 if size is None else size for size in shape)
    return TritonTensor(name, dtype, dims[1:] if batched else dims)


def channel_names(recipe: Recipe, graph: Graph) -> list[str]:
    """A name for each channel of the first output: of the label that reads it, else its number."""
    count = graph.outputs[0].shape[1] if len(graph.outputs[0].shape) > 1 else None
    most = max(channel for label in recipe.labels for channel in label.channels) + 1
    return [
        " + ".join(label.name for label in recipe.labels if channel in label.channels)
        or ("background" if channel == 0 and recipe.activation == "softmax" else f"channel {channel}")
        for channel in range(max(count or 0, most))
    ]


def _plan(package: Package, network: str, options: TritonOptions) -> tuple[bytes, str]:
    """The one plan for a network, and the fingerprint of the device that it was built for."""
    from wetread.engines.tensorrt.plan import PlanRecord
    from wetread.package.manifest import parse

    folder = options.plans or package.path / "engines"
    found = [
        (record, path.with_suffix(""))
        for path in sorted(folder.rglob("*.plan.json"))
        if (record := parse(PlanRecord, path)).package == package.hash and record.network == network
    ]
    if len(found) != 1:
        names = ", ".join(f"{path.name} for {record.gpu}" for record, path in found) or "none"
        raise PackageError(
            f"one TensorRT plan is needed, found {names}",
            where=str(folder),
            todo="load the package with --engine tensorrt on the GPU that will serve it, or name a folder that "
            "holds one plan",
        )
    record, path = found[0]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PackageError(f"the plan cannot be read: {error.strerror}", where=str(path)) from error
    if bytes_sha256(content) != record.plan:
        raise PackageError("the plan is not the one that its record speaks of", where=str(path))
    return content, path.parent.name


def _ensemble(package: Package, name: str, members: Sequence[TritonConfig]) -> dict[str, bytes]:
    """Files of an ensemble: one window in, each fold's outputs out; the client takes their mean."""
    first = members[0]
    outputs = []
    steps = []
    for member in members:
        fold = member.name.rsplit("_", 1)[1]
        renamed = {tensor.name: f"{tensor.name}_{fold}" for tensor in member.outputs}
        steps.append(TritonStep(member.name, {t.name: t.name for t in member.inputs}, renamed))
        outputs += [TritonTensor(renamed[t.name], t.dtype, t.dims) for t in member.outputs]
    parameters = {**first.parameters, "wetread_folds": str(len(members))}
    config = TritonConfig(
        name=name, backend=first.backend, file="", max_batch=min(m.max_batch for m in members),
        inputs=first.inputs, outputs=tuple(outputs), instances=1, queue_delay_us=None, parameters=parameters,
    )  # fmt: skip
    return {
        "config.pbtxt": ensemble_text(config, steps).encode(),
        "recipe.json": (package.path / "recipe.json").read_bytes(),
        # Triton wants a folder for the version, though an ensemble has no file in it
        f"{model_version(package.version)}/README": b"An ensemble has no file of its own.\n",
    }


def _write(out: Path, models: dict[str, dict[str, bytes]], force: bool) -> tuple[Path, ...]:
    """Writes all models' folders under hidden names, then moves them into place."""
    targets = {name: out / name for name in models}
    if not force and (there := [path for path in targets.values() if path.exists()]):
        raise PackageError(
            "the repository has a model of this name",
            where=str(there[0]),
            todo="name another repository, or use --force to replace the model",
        )
    staging: Path | None = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".wetread-", dir=out))
        for name, files in models.items():
            for file, content in files.items():
                path = staging / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for name, target in targets.items():
            if target.exists():
                target.rename(staging / f"{name}.old")
            (staging / name).rename(target)
    except OSError as error:
        raise OutputError(
            f"the repository cannot be written: {error.strerror}", where=str(error.filename or out)
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return tuple(targets.values())
