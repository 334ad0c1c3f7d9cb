"""``--uncertainty true``: several opinions on each case, their maps and scores as components of MONAI's configs.

The opinions are those of an ensemble's networks; of a single network, those on the mirrored copies of the image.
:mod:`.uncertainty` has the formulas.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform, SaveImage, Transform
from torch import nn

from .input_error import InputError
from .label_files import labels_of
from .native import LabelWriter
from .uncertainty import ENTROPY, REGIONS, compare, labels_of_logits, scores, write_scores, write_table
from .windows import flips


class Flipped(nn.Module):
    """A network on mirrored images, its output mirrored back.

    Args:
        network: (N, C, *S) to (N, K, *S).
        axes: of these tensors.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int]) -> None:
        super().__init__()
        self.network, self.axes = network, tuple(axes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(image.flip(self.axes)).flip(self.axes)
        return found


class OpinionInferer(Inferer):
    """Another inferer's logits, and behind them what the opinions make of the case.

    An ensemble costs as much as without; its logits are the mean of its networks', which MONAI's inferer adds up in
    another order than :class:`.networks.Ensemble`. A single network predicts the image and its copies once more.

    Args:
        inferer: :class:`.nnunet.NNUNetInferer` or :class:`.windows.MirrorWindowInferer`.
        network: that will predict.
        mirror_axes: spatial axes along which the training mirrored images; None for none.
        proportion: beta of ALHVR, for the map of its regions; None for another method.

    Raises:
        InputError: a single network that may not mirror has one opinion only.
    """

    def __init__(
        self,
        inferer: Any,
        network: nn.Module,
        mirror_axes: Sequence[int] | None,
        proportion: float | None = None,
    ) -> None:
        super().__init__()
        self.inferer, self.proportion, self.order = inferer, proportion, _order(_dataset_json())
        self.flips = flips(mirror_axes or ())
        if not hasattr(network, "members") and len(self.flips) == 1:
            raise InputError("uncertainty needs several networks, or one that was trained with mirrored images")

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``(1, C, *S)`` → ``(1, K + maps + M, *S)``: logits, the maps, and the labels that each opinion gives."""
        members = [*getattr(network, "members", ())]
        ask = self.inferer if members else self.inferer.without_mirroring()
        networks = members or [Flipped(network, axes) for axes in self.flips]
        predictions = ((_one(ask(inputs, each)), bool(members)) for each in networks)
        mean, maps, labels = compare(predictions, len(networks), self.order, self.proportion)
        logits = _one(self.inferer(inputs, network)) if mean is None else mean
        channels = [_channels(name, values) for name, values in maps.items()]
        return torch.cat([each.to(logits.dtype) for each in (logits, *channels, labels)])[None]


def _channels(name: str, values: torch.Tensor) -> torch.Tensor:
    """A map (*S) as (1, *S); regions, which cannot be resampled, as one channel each."""
    return torch.stack([values == number for number in (1, 2, 3)]) if name == REGIONS else values[None]


def _one(logits: torch.Tensor) -> torch.Tensor:
    """Of a batch of one, on the CPU."""
    return (logits.as_tensor() if isinstance(logits, MetaTensor) else logits)[0].cpu()


class SplitOpinionsd(MapTransform):
    """Takes apart what :class:`OpinionInferer` gives: the logits stay under their key, the rest has keys of its own.

    Args:
        keys: of the inferer's result, (K + maps + M, *S).
        num_outputs: K.
        maps: their names, in order; that of ALHVR's regions has a channel for each of the three.
    """

    def __init__(self, keys: KeysCollection, num_outputs: int, maps: Sequence[str]) -> None:
        super().__init__(keys)
        self.num_outputs = num_outputs
        self.sizes = {name: 3 if name == REGIONS else 1 for name in maps}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            logits, *maps, opinions = d[key].split(
                [self.num_outputs, *self.sizes.values(), len(d[key]) - self.num_outputs - sum(self.sizes.values())]
            )
            parts = {key: logits, **dict(zip(self.sizes, maps, strict=True)), "opinions": opinions}
            d |= {name: MetaTensor(part) for name, part in parts.items()}  # MONAI inverts no others
        return d


class SaveScoresd(Transform):
    """Writes the scores of a case, ``OUTPUT/CASE.json``, out of what :class:`SplitOpinionsd` gives.

    Args:
        output_dir: folder.
    """

    def __init__(self, output_dir: str | Path) -> None:
        dataset_json = _dataset_json()
        self.folder, self.order = Path(output_dir), _order(dataset_json)
        self.classes = labels_of(dataset_json["labels"]).classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        logits, opinions, entropy = (_array(d[key]) for key in ("pred", "opinions", ENTROPY))
        segmentation = labels_of_logits(torch.from_numpy(logits), self.order).numpy()
        found = scores(segmentation, opinions.astype(int), entropy[0].astype(float), self.classes)
        write_scores(found, self.folder, str(d["case"]))
        return d


def _dataset_json() -> dict[str, Any]:
    """Of the bundle that holds this package."""
    file = Path(__file__).resolve().parents[1] / "dataset.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _order(dataset_json: Mapping[str, Any]) -> list[int] | None:
    """With overlapping regions, the label of each; else None."""
    regions = any(not isinstance(value, int) and len(value) > 1 for value in dataset_json["labels"].values())
    return list(dataset_json["regions_class_order"]) if regions else None


def _array(tensor: Any) -> np.ndarray:
    found: np.ndarray = torch.as_tensor(tensor).cpu().numpy()
    return found


class RegionLabelsd(MapTransform):
    """From a channel for each of ALHVR's regions to their numbers: (3, *S) → (1, *S) uint8, 0 outside of the image."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            channels = d[key]
            d[key] = ((channels.argmax(0, keepdim=True) + 1) * (channels.amax(0, keepdim=True) > 0)).to(torch.uint8)
        return d


class SaveMapsd(MapTransform):
    """Writes each map as ``OUTPUT/CASE_MAP.nii.gz`` with MONAI's ``SaveImage``, a volume of one slice as a volume.

    Args:
        keys: the maps' names, each (1, *S) with the affine of the image.
        output_dir: folder.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path) -> None:
        super().__init__(keys)
        self.folder = output_dir

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            save = SaveImage(
                self.folder,
                output_postfix=str(key),
                output_dtype=torch.uint8 if key == REGIONS else torch.float32,
                separate_folder=False,
                squeeze_end_dims=False,
                writer=LabelWriter,
                output_name_formatter=lambda *_: {"subject": f"{d['case']}.nii.gz", "idx": None},
                print_log=False,
            )
            save(d[key])
        return d


class ScoreTable:
    """Handler: at the end a table of all cases, ``scores.csv``, the least sure ones first.

    Args:
        output_dir: folder of the scores.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, lambda: self.folder.is_dir() and write_table(self.folder))
