"""``alhvr train``: nnU-Net's training, on several machines as well."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

from alhvr_trainer.compatibility import replaced
from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import InputError, did_you_mean


def train(
    dataset: int | str,
    configuration: str,
    fold: int | str = 0,
    *,
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    continue_training: bool = False,
    validation_only: bool = False,
    best: bool = False,
    npz: bool = False,
    weights: str | None = None,
    checkpoints: bool = True,
    gpus: int = 1,
    device: str = "cuda",
) -> list[str]:
    """Train one fold as ``nnUNetv2_train`` does, without ``alhvr link``, and on several machines as well.

    Several GPUs of one machine: ``--gpus 4``. Several machines: start it with torchrun on each of them, with nnU-Net's
    folders on a file system that all share::

        torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
            -m alhvr_trainer train -d 27 -c 2d -f 0

    The plans' batch is divided over all processes, and they train as one process with the whole batch would.

    Args:
        dataset: id or name.
        configuration: e.g. 2d or 3d_fullres.
        fold: a number, or "all".
        plans: plans identifier; default: the only plans that there are, else ALHVRPlans.
        trainer: name of the trainer.
        continue_training: from the latest checkpoint (nnU-Net's --c).
        validation_only: of a finished training (--val).
        best: validate with checkpoint_best (--val_best).
        npz: keep the probabilities of the validation cases (--npz).
        weights: a checkpoint to start from (-pretrained_weights).
        checkpoints: write them; off is nnU-Net's --disable_checkpointing.
        gpus: processes on this machine (-num_gpus); under torchrun leave it out.
        device: "cuda", "cpu" or "mps".

    Returns:
        The stages of a cascade that can be trained next; empty outside a cascade.

    Raises:
        InputError: flags that exclude each other, no such device, bad plans or data, or another process ended.

    Example:
        alhvr train -d 27 -c 2d -f 0
    """
    _check_flags(continue_training, validation_only, best, weights, checkpoints, gpus, device)
    from alhvr_trainer.commands.link import let_nnunet_find_us
    from alhvr_trainer.models import find_model, one_fold

    let_nnunet_find_us()
    number = one_fold(fold, "each is a training of its own")
    name, plans, stages = _check_names(dataset, configuration, plans)
    _check_trainer(trainer)
    if validation_only:
        try:
            find_model(dataset, configuration, number, plans, trainer)
        except InputError as error:
            raise InputError(f"fold {number} cannot be validated: {error}") from error
    import torch
    from nnunetv2.run.run_training import run_training

    if device == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    with _process_group(device):
        run_training(
            name,
            configuration,
            number,
            trainer,
            plans,
            weights,
            gpus,
            npz,
            continue_training,
            validation_only,
            not checkpoints,
            best,
            torch.device(device),
        )
    return stages


def _check_names(dataset: int | str, configuration: str, plans: str | None) -> tuple[str, str, list[str]]:
    """The dataset's name, the plans' and the next stages of the configuration; all of them exist."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from alhvr_trainer.compatibility import nnunet_folder
    from alhvr_trainer.config.files import read_object
    from alhvr_trainer.config.lookup import chosen_plans, dataset_in, no_such_plans, plans_in

    preprocessed = Path(nnunet_folder("nnUNet_preprocessed"))
    try:
        name = dataset_in("nnUNet_preprocessed", dataset)
    except InputError as error:
        raise InputError(f"{error}; plan it first: alhvr plan_and_preprocess -d {dataset}") from error
    folder = preprocessed / name
    plans = chosen_plans(plans, plans_in(folder))
    file = folder / f"{plans}.json"
    if not file.exists():
        raise no_such_plans(file)
    content = read_object(file)
    configurations = content.get("configurations")
    if isinstance(configurations, dict) and configuration not in configurations:
        there = f"{did_you_mean(configuration, configurations)}; there are: {', '.join(configurations)}"
        raise InputError(f"{file} has no configuration {configuration!r}{there}")
    try:
        return name, plans, list(PlansManager(content).get_configuration(configuration).next_stage_names or [])
    except Exception:  # the trainer checks plans thoroughly, and says what is wrong with them
        return name, plans, []


def _check_trainer(name: str) -> None:
    """nnU-Net finds a trainer of this name."""
    from alhvr_trainer.compatibility import trainer_class
    from alhvr_trainer.config.methods import method_of, methods
    from alhvr_trainer.trainers.variants import trainer_named

    try:
        if method_of(name):
            trainer_named(name)
            return
        with redirect_stdout(io.StringIO()):  # where it looks; it says so again when it starts
            found = trainer_class(name)
    except AttributeError:
        found = None
    if found is None:
        close = did_you_mean(name, [*methods(), "nnUNetTrainer"])
        raise InputError(f"no trainer is called {name}{close}; there are {', '.join(methods())}, and variants of them")


def _check_flags(
    continue_training: bool,
    validation_only: bool,
    best: bool,
    weights: str | None,
    checkpoints: bool,
    gpus: int,
    device: str,
) -> None:
    started_by_torchrun = "WORLD_SIZE" in os.environ
    check_device(device)
    if gpus < 1 or (gpus > 1 and (started_by_torchrun or device != "cuda")):
        raise InputError(f"gpus is {gpus}; more than 1 is for device cuda without torchrun")
    if continue_training and (validation_only or weights):
        raise InputError("continue_training excludes validation_only and weights")
    if best and not checkpoints:
        raise InputError("best needs checkpoints: there would be no checkpoint_best to validate with")
    if weights and not os.path.isfile(weights):
        raise InputError(f"weights {weights} is not a file")


@contextmanager
def _process_group(device: str) -> Iterator[None]:
    """The ranks that torchrun started, if it did; nnU-Net's trainer finds them.

    Raises:
        InputError: another rank ended.
    """
    import torch
    from nnunetv2.run import load_pretrained_weights as pretrained_module
    from torch import distributed as dist
    from torch.multiprocessing.spawn import ProcessException

    if "WORLD_SIZE" not in os.environ:
        try:
            yield
        except ProcessException as error:  # of nnU-Net's -num_gpus
            reason = str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
            raise InputError(f"process {error.error_index} of this training ended: {reason}") from error
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        # nnU-Net would load pretrained weights onto the GPU that has the number of the global rank
        with replaced(pretrained_module, dist=SimpleNamespace(is_initialized=lambda: False)):
            yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "Connection" not in str(error):
            raise
        raise InputError(
            f"rank {dist.get_rank()} stops: another process of this training ended, see its message ({error}); "
            "continue all of them with --continue_training"
        ) from error
    finally:
        dist.destroy_process_group()
