"""``alhvr rounds``: iterated pseudo-labels, down to a stock nnU-Net."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.config.files import check_whole_number
from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from alhvr_trainer.data.dataset import Cases, Fold
    from alhvr_trainer.models import TrainedModel
    from alhvr_trainer.pseudo_labels.round_dataset import Round

FIRST_IDENTIFIER = 900
STOCK = "nnUNetTrainer"


def rounds(
    dataset: int | str,
    configuration: str,
    fold: int | str = 0,
    *,
    rounds: int = 1,
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    student: str = STOCK,
    final: str | None = None,
    threshold: float | None = None,
    first_id: int | None = None,
    device: str = "cuda",
    num_processes: int = 3,
    dry_run: bool = False,
) -> Path:
    """Train on pseudo-labels: a teacher labels the unlabeled cases, a student trains on true and pseudo-labels.

    Each round is an nnU-Net dataset of its own, DatasetXXX_NAME_2d_fold0_round1 and so on, with the teacher's
    predictions in a folder of their own, pseudo_labels.json (origin, scores, what was dropped) and one fold, 0, whose
    validation cases are those of the source's fold. A true label is never replaced. The last student is a stock
    nnU-Net, which predicts at stock cost without this package. Interrupted, the same command goes on.

    Args:
        dataset: id or name.
        configuration: e.g. 2d or 3d_fullres.
        fold: whose training cases have true labels, and whose unlabeled cases get pseudo-labels.
        rounds: how many students train, each on the labels of the one before.
        plans: plans identifier; default: the only plans that there are, else ALHVRPlans.
        trainer: of the first teacher; trained first if it is not.
        student: trainer of the students, one that learns from labels alone.
        final: trainer of the last student; default: as student.
        threshold: least Dice between the teacher's opinions, and from the second round on with the round before; cases
            below are dropped. Default: 0.85; 0 keeps all in which anything is found.
        first_id: number of the first round's dataset; default: the first free ones from 900 on.
        device: "cuda", "cpu" or "mps".
        num_processes: worker processes.
        dry_run: print nnU-Net's commands that this stands for.

    Returns:
        nnU-Net's folder of the last student.

    Raises:
        InputError: bad arguments or data, a folder that belongs to something else, or a training failed.

    Example:
        alhvr rounds -d 27 -c 2d -f 0 --rounds 2
        alhvr rounds -d 27 -c 2d -f 0 --rounds 2 --dry_run
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; it must be a Dice from 0 to 1")
    check_whole_number("rounds", rounds)
    check_device(device)
    from alhvr_trainer.pseudo_labels.selection import DEFAULT_THRESHOLD

    of_fold, plans = _fold(dataset, configuration, fold, plans)
    _check_students({student, final or student})
    trainers = [*[student] * (rounds - 1), final or student]
    all_rounds = _rounds(of_fold, configuration, plans, trainers, first_id)
    least = DEFAULT_THRESHOLD if threshold is None else float(threshold)
    if dry_run:
        print(*_commands(of_fold, all_rounds, trainer, device), sep="\n")
        return all_rounds[-1].model
    teacher = _trained(of_fold.dataset.name, configuration, of_fold.number, plans, trainer, device)
    previous: Round | None = None
    for this in all_rounds:
        _prepare(this, of_fold, teacher, previous, least, device, num_processes)
        teacher, previous = _trained(this.name, configuration, 0, plans, this.trainer, device), this
        print(f"round {this.number}: {_validation(teacher)}")
    return Path(teacher.folder)


def _fold(dataset: int | str, configuration: str, fold: int | str, plans: str | None) -> tuple[Fold, str]:
    """The source's fold, and the name of its plans."""
    from alhvr_trainer.config.files import read_object
    from alhvr_trainer.config.lookup import chosen_plans, plans_in
    from alhvr_trainer.config.plans import check_plans
    from alhvr_trainer.data.dataset import find_dataset
    from alhvr_trainer.models import one_fold

    found, number = find_dataset(dataset), one_fold(fold, "its true labels are the ones to train on")
    folder = Path(found.preprocessed)
    name = chosen_plans(plans, plans_in(folder))
    file = folder / f"{name}.json"
    content = read_object(file, f"run alhvr plan_and_preprocess -d {dataset}")
    check_plans(content, configuration, found.dataset_json, str(file))
    if content["configurations"][configuration].get("previous_stage") is not None:
        raise InputError(f"{configuration} is the second stage of a cascade, whose rounds are not supported")
    if number == "all" or int(number) >= len(found.splits):
        raise InputError(
            f"fold is {number}; splits_final.json of {found.name} has {len(found.splits)} folds: rounds need one of "
            "them, for its lists of cases (alhvr make_split, or a training, writes the file)"
        )
    split = found.splits[int(number)]
    return found.fold(number, split["train"], split["val"]), name


def _check_students(trainers: set[str]) -> None:
    """Every case of a round has a label: there is nothing to learn without."""
    from alhvr_trainer.config.methods import semi_supervised_method_of

    for name in trainers:
        if semi_supervised_method_of(name):
            raise InputError(f"student {name} learns from unlabeled cases, and a round has none: use {STOCK}")


def _rounds(fold: Fold, configuration: str, plans: str, trainers: list[str], first_id: int | None) -> list[Round]:
    """The rounds; those of an earlier call of the same source keep their datasets."""
    from alhvr_trainer.pseudo_labels.round_dataset import Round

    def of(first: int) -> list[Round]:
        return [
            Round(number, first + number - 1, fold.dataset, fold.number, configuration, plans, trainer)
            for number, trainer in enumerate(trainers, start=1)
        ]

    chosen = _first_identifier(of(0)) if first_id is None else check_whole_number("first_id", first_id)
    found = of(chosen)
    for each in found:
        others = [name for name in _datasets() if name[7:10] == each.name[7:10] and name != each.name]
        if others or each.identifier > 999:
            raise InputError(f"round {each.number} would be {each.name}, and there is {others or 'no such number'}")
    return found


def _datasets() -> list[str]:
    """Names of those in ``nnUNet_raw``."""
    from alhvr_trainer.compatibility import nnunet_folder

    return sorted(path.name for path in Path(nnunet_folder("nnUNet_raw")).glob("Dataset[0-9][0-9][0-9]_*"))


def _first_identifier(wanted: list[Round]) -> int:
    """Of the datasets of an earlier call, or the first of as many free numbers."""
    taken = {name[7:10]: name for name in _datasets()}
    own = next((key for key, name in taken.items() if name[11:] == wanted[0].short_name), None)
    if own is not None:
        return int(own)
    for first in range(FIRST_IDENTIFIER, 1001 - len(wanted)):
        if not any(f"{first + each:03d}" in taken for each in range(len(wanted))):
            return first
    raise InputError(f"no {len(wanted)} free numbers of datasets from {FIRST_IDENTIFIER} on: choose --first_id")


def _prepare(
    this: Round,
    fold: Fold,
    teacher: TrainedModel,
    previous: Round | None,
    threshold: float,
    device: str,
    processes: int,
) -> None:
    """Pseudo-labels, dataset and preprocessed data of a round; what is there is kept."""
    from alhvr_trainer.annotation.predictions import predict_cases
    from alhvr_trainer.bundle.scripts.label_files import labels_of
    from alhvr_trainer.pseudo_labels import round_dataset
    from alhvr_trainer.pseudo_labels.selection import judge_cases

    settings = {
        "source": fold.dataset.name,
        "fold": fold.number,
        "configuration": this.configuration,
        "plans": this.plans,
        "threshold": threshold,
        "teacher": teacher.origin[0],
    }
    if not round_dataset.is_written(this, settings):
        round_dataset.clear_the_way(this)
        unlabeled: Cases = fold.unlabeled
        predicted = predict_cases(teacher, unlabeled, this.raw, device, processes)
        judged = judge_cases(
            list(unlabeled),
            predicted,
            None if previous is None else previous.predicted,
            labels_of(teacher.dataset_json["labels"]).classes,
            threshold,
            teacher.plans_manager.image_reader_writer_class(),
            teacher.dataset_json["file_ending"],
        )
        if not any(each.kept for each in judged.values()):
            best = max((each.agreement for each in judged.values() if each.agreement is not None), default=None)
            raise InputError(
                f"round {this.number}: no pseudo-label reaches a Dice of {threshold}, "
                + (f"the best has {best:.3f}: lower --threshold" if best is not None else "the teacher finds nothing")
            )
        round_dataset.write_dataset(this, fold.train, fold.validation, unlabeled, judged, settings)
        kept = sum(each.kept for each in judged.values())
        print(
            f"round {this.number}: {this.name} trains on {len(fold.train)} true and {kept} pseudo-labels; "
            f"{len(judged) - kept} cases dropped"
        )
    if not round_dataset.is_preprocessed(this):
        round_dataset.preprocess(this, processes)


def _trained(dataset: str, configuration: str, fold: int | str, plans: str, trainer: str, device: str) -> TrainedModel:
    """The model, trained to its end if it is not; a training that was interrupted goes on."""
    from alhvr_trainer.compatibility import nnunet_folder
    from alhvr_trainer.models import find_model

    folder = Path(nnunet_folder("nnUNet_results"), dataset, f"{trainer}__{plans}__{configuration}", f"fold_{fold}")
    if not (folder / "checkpoint_final.pth").is_file():
        from alhvr_trainer.processes import interrupted_by, run_logged

        words = ["train", "-d", dataset, "-c", configuration, "-f", fold, "-p", plans, "-t", trainer]
        words += ["--device", device]
        if (folder / "checkpoint_latest.pth").is_file():
            words.append("--continue_training")
        command = [sys.executable, "-m", "alhvr_trainer", *map(str, words)]
        log = Path(nnunet_folder("nnUNet_results"), dataset, "rounds_logs", f"{trainer}_fold_{fold}.log")
        print(f"{shlex.join(['alhvr', *map(str, words)])} (log: {log})", flush=True)
        with interrupted_by(signal.SIGTERM, signal.SIGHUP):  # else the training would go on by itself
            problem = run_logged(command, log, dict(os.environ))
        if problem:
            raise InputError(f"training {trainer} on {dataset} failed ({problem}); see {log}")
    return find_model(dataset, configuration, fold, plans, trainer)


def _validation(model: TrainedModel) -> str:
    """nnU-Net's own validation, in words."""
    from alhvr_trainer.config.files import read_object

    file = model.folder / f"fold_{model.folds[0]}" / "validation" / "summary.json"
    if not file.is_file():
        return "not validated"
    found: Any = read_object(file)
    return f"validation Dice {found['foreground_mean']['Dice']:.4f} of {model.trainer}"


def _commands(fold: Fold, all_rounds: list[Round], trainer: str, device: str) -> list[str]:
    """nnU-Net's commands; between them, alhvr rounds writes the datasets."""
    on = ["-device", device]
    teacher, number = (fold.dataset.name, trainer), fold.number
    lines = []
    for this in all_rounds:
        name, tr = teacher
        model = ["-d", name, "-c", this.configuration, "-f", number, "-tr", tr, "-p", this.plans]
        if this.number == 1:
            lines.append(_train(name, this, number, tr, on))
        lines += [
            _line("nnUNetv2_predict", "-i", "UNLABELED_IMAGES", "-o", this.predicted, *model, *on),
            f"# {this.name}: true labels, and pseudo-labels of the cases on which opinions and rounds agree",
            _line("nnUNetv2_preprocess", "-d", this.identifier, "-plans_name", this.plans, "-c", this.configuration),
            _train(this.name, this, 0, this.trainer, on),
        ]
        teacher, number = (this.name, this.trainer), 0
    return lines


def _train(dataset: str, this: Round, fold: int | str, trainer: str, on: list[str]) -> str:
    return _line("nnUNetv2_train", dataset, this.configuration, fold, "-tr", trainer, "-p", this.plans, *on)


def _line(*words: object) -> str:
    return shlex.join(map(str, words))
