"""A round's own nnU-Net dataset: true labels and pseudo-labels, which any nnU-Net trains on.

It copies no image: its ``dataset.json`` lists all cases with their paths. Plans are those of the source; nothing is
planned anew, so that models of all rounds predict alike.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.config.files import read_object, write_json
from alhvr_trainer.config.names import UNLABELED_KEY
from alhvr_trainer.data.dataset import Cases, Dataset, preprocessed_folder, raw_folder
from alhvr_trainer.data.splits import SPLITS_FILE
from alhvr_trainer.errors import InputError, shown
from alhvr_trainer.pseudo_labels.selection import Judged

PSEUDO_LABELS = "pseudo_labels.json"
"""In the raw dataset: where each pseudo-label comes from, and which are used."""


@dataclass(frozen=True)
class Round:
    """A round, and where its files lie."""

    number: int
    """From 1."""
    identifier: int
    """Number of its dataset."""
    source: Dataset
    fold: int | str
    configuration: str
    plans: str
    trainer: str
    """Of the student."""

    @property
    def name(self) -> str:
        """``DatasetXXX_NAME_2d_fold0_round1``."""
        return f"Dataset{self.identifier:03d}_{self.short_name}"

    @property
    def short_name(self) -> str:
        return f"{self.source.name[11:]}_{self.configuration}_fold{self.fold}_round{self.number}"

    @property
    def raw(self) -> Path:
        return Path(raw_folder(self.name))

    @property
    def preprocessed(self) -> Path:
        return Path(preprocessed_folder(self.name))

    @property
    def results(self) -> Path:
        return Path(nnunet_folder("nnUNet_results"), self.name)

    @property
    def model(self) -> Path:
        """nnU-Net's folder of the student."""
        return self.results / f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def predicted(self) -> Path:
        """The teacher's segmentations of all unlabeled cases."""
        return self.raw / "predicted"


def write_dataset(
    this: Round,
    train: Sequence[str],
    validation: Sequence[str],
    unlabeled: Cases,
    judged: Mapping[str, Judged],
    settings: Mapping[str, Any],
) -> None:
    """``dataset.json``, split, plans and fingerprint of a round, and last ``pseudo_labels.json``.

    Args:
        this: the round.
        train, validation: cases with true labels.
        unlabeled: images of the cases with pseudo-labels.
        judged: of these, which are kept.
        settings: what the round was made with, for the record.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    ending = this.source.dataset_json["file_ending"]
    kept = [case for case, each in judged.items() if each.kept]
    true = get_filenames_of_train_images_and_targets(str(this.source.raw), deepcopy(this.source.dataset_json))
    listed = {
        **{case: (true[case]["images"], true[case]["label"]) for case in (*train, *validation)},
        **{case: (unlabeled[case], this.predicted / f"{case}{ending}") for case in kept},
    }
    content = {key: value for key, value in this.source.dataset_json.items() if key not in ("dataset", UNLABELED_KEY)}
    content["numTraining"] = len(listed)
    content["dataset"] = {
        case: {"images": [os.path.abspath(file) for file in images], "label": os.path.abspath(label)}
        for case, (images, label) in listed.items()
    }
    write_json(content, this.raw / "dataset.json", indent=4)
    this.preprocessed.mkdir(parents=True, exist_ok=True)
    write_json([{"train": [*train, *kept], "val": list(validation)}], this.preprocessed / SPLITS_FILE)
    write_json(content, this.preprocessed / "dataset.json", indent=4)
    source = Path(this.source.preprocessed)
    plans = read_object(source / f"{this.plans}.json")
    write_json({**plans, "dataset_name": this.name}, this.preprocessed / f"{this.plans}.json", indent=4)
    shutil.copyfile(source / "dataset_fingerprint.json", this.preprocessed / "dataset_fingerprint.json")
    counts = {"true": len(train), "pseudo": len(kept), "dropped": len(judged) - len(kept)}
    record = {
        "round": this.number,
        "settings": dict(settings),
        "teacher": read_object(this.raw / "origin.json"),
        "cases_to_train_on": counts,
        "cases": {case: asdict(each) for case, each in judged.items()},
    }
    write_json(record, this.raw / PSEUDO_LABELS)


def is_written(this: Round, settings: Mapping[str, Any]) -> bool:
    """Whether the round's dataset is complete.

    Raises:
        InputError: it was made with other settings, or the folder belongs to something else.
    """
    file = this.raw / PSEUDO_LABELS
    if file.is_file():
        found = read_object(file)["settings"]
        other = {key: value for key, value in found.items() if settings.get(key) != value}
        if other:
            now = {key: settings.get(key) for key in other}
            raise InputError(
                f"{file} was made with {shown(other)}, now it is {shown(now)}: choose another --first_id, or remove "
                f"{' and '.join(map(str, (this.raw, this.results)))}"
            )
        return True
    if (this.raw / "dataset.json").is_file() and not (this.raw / "origin.json").is_file():
        raise InputError(f"{this.raw} is there and no round of alhvr rounds: choose another --first_id")
    return False


def clear_the_way(this: Round) -> None:
    """Before a round's dataset is written: no preprocessed data of an earlier one, and no model of one.

    Raises:
        InputError: there is a model, which would be taken for this round's.
    """
    if this.results.exists():
        raise InputError(
            f"{this.results} holds the student of an earlier round {this.number}, whose data are gone: remove it"
        )
    shutil.rmtree(this.preprocessed, ignore_errors=True)


def is_preprocessed(this: Round) -> bool:
    """Whether all of its cases are preprocessed."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(this.preprocessed / f"{this.plans}.json"))
    folder = this.preprocessed / plans.get_configuration(this.configuration).data_identifier
    cases = read_object(this.raw / "dataset.json")["dataset"]
    return all((folder / f"{case}.pkl").is_file() and (folder / f"{case}.b2nd").is_file() for case in cases)


def preprocess(this: Round, processes: int) -> None:
    """nnU-Net's preprocessing."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    preprocess_dataset(this.identifier, this.plans, [this.configuration], num_processes=[processes])
