"""What lies in an nnU-Net v2 results folder: plans, data set and folds, read as plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wetread.errors import GraphError, RecipeError

PLANS, DATASET = "plans.json", "dataset.json"
_OLD_CLASSES = {
    "PlainConvUNet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "ResidualEncoderUNet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}


@dataclass(frozen=True)
class Architecture:
    """The network's class and arguments, as `plans.json` names them.

    Attributes:
        name: dotted name of the class.
        arguments: keyword arguments; those in ``imported`` are dotted names.
        imported: names of arguments that stand for classes.
        key: where this was found, for messages.
    """

    name: str
    arguments: dict[str, Any]
    imported: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Folder:
    """One trained model: ``<trainer>__<plans>__<configuration>``.

    Attributes:
        path: the folder.
        plans: content of `plans.json`.
        dataset: content of `dataset.json`.
    """

    path: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]

    def plan(self, key: str) -> Any:
        """A value of `plans.json`.

        Raises:
            RecipeError: the key is missing.
        """
        if key not in self.plans:
            raise RecipeError(f"the key {key!r} is missing", where=f"{self.path / PLANS}")
        return self.plans[key]

    def configuration(self, name: str) -> Configuration:
        """A configuration with what it inherits.

        Raises:
            RecipeError: there is none of this name, or configurations inherit from each other in a circle.
        """
        known = self.plan("configurations")
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        visited: list[str] = []
        wanted: str | None = name
        while wanted is not None:
            if wanted not in known or wanted in visited:
                fault = "inherits from itself" if wanted in visited else "does not exist"
                raise RecipeError(
                    f"configuration {wanted!r} {fault}; there are {', '.join(known)}",
                    where=f"{self.path / PLANS}: configurations",
                )
            visited.append(wanted)
            for key, value in known[wanted].items():
                if key not in values:
                    values[key], origin[key] = value, wanted
            wanted = known[wanted].get("inherits_from")
        return Configuration(name, values, origin, f"{self.path / PLANS}")


@dataclass(frozen=True)
class Configuration:
    """One configuration of the plans, inheritance resolved.

    Attributes:
        name: such as ``3d_fullres``.
        values: its entries.
        origin: the configuration that each entry comes from.
        where: file for messages.
    """

    name: str
    values: dict[str, Any]
    origin: dict[str, str]
    where: str

    def __getitem__(self, key: str) -> Any:
        """An entry.

        Raises:
            RecipeError: it is missing.
        """
        if key not in self.values:
            raise RecipeError(
                f"the key {key!r} is missing", where=f"{self.where}: configurations.{self.name}"
            )
        return self.values[key]

    def key(self, name: str) -> str:
        """File and key of an entry, for the record of what was derived."""
        return f"{PLANS}:configurations.{self.origin.get(name, self.name)}.{name}"

    def architecture(self) -> Architecture:
        """The network, from either format of plans.

        Raises:
            RecipeError: an entry is missing, or the old format names an unknown class.
        """
        if "architecture" not in self.values:
            return self._old_architecture()
        told = self["architecture"]
        try:
            return Architecture(
                str(told["network_class_name"]),
                dict(told["arch_kwargs"]),
                tuple(told["_kw_requires_import"]),
                f"{self.where}: configurations.{self.name}.architecture",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(
                f"the architecture is incomplete: {error}",
                where=f"{self.where}: configurations.{self.name}.architecture",
            ) from error

    def _old_architecture(self) -> Architecture:
        """Plans from before nnU-Net 2.5: a class name and numbers; the rest was always the same."""
        name = self["UNet_class_name"]
        if name not in _OLD_CLASSES:
            raise RecipeError(
                f"UNet_class_name is {name!r}, known are {', '.join(_OLD_CLASSES)}",
                where=f"{self.where}: configurations.{self.name}",
                todo="plan the data set again with a newer nnU-Net, or export the network to ONNX yourself",
            )
        counts = list(self["n_conv_per_stage_encoder"])
        blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
        first, most = self["UNet_base_num_features"], self["unet_max_num_features"]
        return Architecture(
            _OLD_CLASSES[name],
            {
                "n_stages": len(counts),
                "features_per_stage": [min(first * 2**stage, most) for stage in range(len(counts))],
                "conv_op": "torch.nn.Conv3d",
                "kernel_sizes": self["conv_kernel_sizes"],
                "strides": self["pool_op_kernel_sizes"],
                blocks: counts,
                "n_conv_per_stage_decoder": self["n_conv_per_stage_decoder"],
                "conv_bias": True,
                "norm_op": "torch.nn.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            ("conv_op", "norm_op", "dropout_op", "nonlin"),
            f"{self.where}: configurations.{self.name}.UNet_class_name",
        )


def model_folders(path: Path) -> list[Path]:
    """Folders of trained models at a path or up to two levels below it, by name."""
    if not path.is_dir():
        return []
    if (path / PLANS).is_file() and (path / DATASET).is_file():
        return [path]
    below = [*path.glob(f"*/{PLANS}"), *path.glob(f"*/*/{PLANS}")]
    return sorted(p.parent for p in below if (p.parent / DATASET).is_file())


def is_nnunet(path: Path) -> bool:
    """Whether a path holds nnU-Net results; told by names alone."""
    return bool(model_folders(path))


def open_folder(path: Path) -> Folder:
    """Reads the folder of one trained model.

    Args:
        path: the folder, or one above it that holds no other.

    Raises:
        GraphError: there are several models, with their names; a file is missing or no JSON.
    """
    found = model_folders(path)
    if not found:
        raise GraphError(
            f"there is no folder with {PLANS} and {DATASET}",
            where=str(path),
            todo="give the folder nnU-Net trained into, such as nnUNetTrainer__nnUNetPlans__3d_fullres",
        )
    if len(found) > 1:
        raise GraphError(
            f"there are {len(found)} trained models: {', '.join(str(p.relative_to(path)) for p in found)}",
            where=str(path),
            todo="give the folder of one of them",
        )
    return Folder(found[0], _json(found[0] / PLANS), _json(found[0] / DATASET))


def checkpoints(folder: Path, folds: tuple[int, ...], name: str) -> dict[str, Path]:
    """Checkpoint files of an ensemble, by fold.

    Args:
        folder: of the model.
        folds: those wanted; empty takes every numbered fold, or ``fold_all`` where there is no other.
        name: of the checkpoint file.

    Raises:
        GraphError: a fold or its checkpoint is missing; names what is there.
    """
    there = {
        p.parent.name.removeprefix("fold_"): p for p in folder.glob(f"fold_*/{name}") if p.is_file()
    }  # fmt: skip
    if folds:
        missing = [fold for fold in folds if str(fold) not in there]
        if missing:
            raise GraphError(
                f"fold {missing[0]} has no {name}; folds that have: {', '.join(sorted(there)) or 'none'}",
                where=str(folder / f"fold_{missing[0]}"),
                todo="choose other folds, or another checkpoint",
            )
        return {str(fold): there[str(fold)] for fold in folds}
    numbered = sorted((fold for fold in there if fold.isdigit()), key=int)
    if numbered:
        return {fold: there[fold] for fold in numbered}
    if "all" in there:
        return {"all": there["all"]}
    others = sorted(str(p.relative_to(folder)) for p in folder.glob("fold_*/*.pth"))
    raise GraphError(
        f"no fold has a {name}; found {', '.join(others) or 'no checkpoint at all'}",
        where=str(folder),
        todo="finish the training, or name one of the checkpoints found",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise GraphError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise GraphError(f"is no JSON: {error}", where=str(path), todo="copy the file again") from error
    if not isinstance(data, dict):
        raise GraphError("is no JSON object", where=str(path))
    return data
