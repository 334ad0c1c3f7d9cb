"""``alhvr predict``: nnU-Net's prediction, with our checks before it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.bundle.scripts.overwriting import inside_raw_dataset, overwritten_input
from alhvr_trainer.config.files import check_folder, read_object
from alhvr_trainer.config.names import PREDICTED_BY, TRAINER_NAME, UNCERTAINTY_FOLDER, WEIGHTS_FILE
from alhvr_trainer.data.dataset import Cases, files_by_case
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import InputError, cut, one_line

if TYPE_CHECKING:
    from alhvr_trainer.commands.uncertainty_maps import Uncertainty
    from alhvr_trainer.models import TrainedModel

PARTS_PER_WORKER = 4


def predict(
    dataset: int | str | None = None,
    configuration: str | None = None,
    fold: int | str | tuple[int | str, ...] = 0,
    *,
    input: str | Path,
    output: str | Path,
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    model_folder: str | Path | None = None,
    weights_file: str = WEIGHTS_FILE,
    network: str = "a",
    device: str = "cuda",
    step_size: float = 0.5,
    mirroring: bool = True,
    save_probabilities: bool = False,
    uncertainty: bool = False,
    previous_stage: str | Path | None = None,
    continue_prediction: bool = False,
    num_processes: int = 3,
    verify: bool = True,
    scheduler: str | None = None,
) -> Path:
    """Segment images with a trained model, voxel for voxel as ``nnUNetv2_predict`` does, after checking all of them.

    Args:
        dataset: id or name; with configuration, plans and trainer it names the model.
        configuration: e.g. 2d or 3d_fullres.
        fold: a fold, several ("0,1", an ensemble) or "all".
        input: folder of images, named as for nnU-Net (CASE_0000.nii.gz), or one of them: its case alone.
        output: folder for the segmentations.
        plans: plans identifier; default: that of the only such model, else ALHVRPlans.
        trainer: trainer that the model was trained with.
        model_folder: nnU-Net's folder of the model, TRAINER__PLANS__CONFIGURATION, in place of dataset,
            configuration, plans and trainer; nnUNet_results need not be set.
        weights_file: name of the checkpoints (nnU-Net's -chk).
        network: "a", "b", or "both" (an ensemble of the two).
        device: "cuda", "cpu" or "mps".
        step_size: of the sliding window, as a share of the patch; more than 0, at most 1.
        mirroring: at test time, along the axes that the training allowed (off: nnU-Net's --disable_tta).
        save_probabilities: beside the segmentations.
        uncertainty: say how sure the model is, in OUTPUT/uncertainty: for each case maps and scores (CASE_entropy,
            CASE_disagreement, of two networks CASE_regions, CASE.json), and scores.csv, the least sure case first.
            Both networks of a checkpoint and all folds are compared; of one network, mirrored copies. About twice
            the time.
        previous_stage: for the second stage of a cascade, the folder with the segmentations of the first
            (-prev_stage_predictions).
        continue_prediction: leave out cases that are segmented already; with uncertainty, by the same checkpoints.
        num_processes: worker processes for preprocessing, and as many for writing; none on a cluster's workers.
        verify: read every image first, so that a damaged one is named before anything is computed.
        scheduler: address of a Dask cluster, whose workers share the cases: docs/cluster.md. They must see the folders
            under the same paths.

    Returns:
        The output folder.

    Raises:
        InputError: model, images or options cannot be used; the message says which and what to do.

    Example:
        alhvr predict -d 27 -c 2d -f 0 -i scans -o segmentations
        alhvr predict -m models/nnUNetTrainer__nnUNetPlans__2d -f 0,1 -i scans -o segmentations --device cpu
    """
    if not 0 < step_size <= 1:
        raise InputError(f"step_size is {step_size}; it must be more than 0 and at most 1")
    if num_processes < 1:
        raise InputError(f"num_processes is {num_processes}; it must be at least 1")
    source, target = Path(input), Path(output)
    check_folder(target)
    if scheduler is None:
        check_device(device)
    from alhvr_trainer.models import model_named

    model = model_named(dataset, configuration, fold, plans, trainer, weights_file, model_folder)
    cases = _cases(source, model)
    previous = _previous(model, previous_stage, cases)
    files = [file for images in cases.values() for file in images]
    beside = [target / UNCERTAINTY_FOLDER] if uncertainty else []
    problem = overwritten_input([*files, *previous], [target, *_written(target, cases, model), *beside])
    problem = problem or inside_raw_dataset(target)
    if problem:
        raise InputError(problem)
    how = Predicting(model, network, device, step_size, mirroring, uncertainty)
    asked = how.asked()  # for its error, before anything is written
    if asked and continue_prediction:
        _check_scores(cases, target, model.dataset_json["file_ending"], asked.origin)
    if scheduler is not None:
        _predict_on_cluster(
            scheduler, how, cases, target, verify, save_probabilities, continue_prediction, previous_stage
        )
        return _with_table(target, uncertainty)
    predictor, maps = how.predictor(asked)
    if verify:
        _verify(cases, model)
    target.mkdir(parents=True, exist_ok=True)
    with maps:
        predictor.predict_from_files(
            list(cases.values()),
            [str(target / case) for case in cases],
            save_probabilities=save_probabilities,
            overwrite=not continue_prediction,
            num_processes_preprocessing=num_processes,
            num_processes_segmentation_export=num_processes,
            folder_with_segs_from_prev_stage=None if previous_stage is None else str(previous_stage),
        )
    return _with_table(target, uncertainty)


def _with_table(target: Path, uncertainty: bool) -> Path:
    if uncertainty:
        from alhvr_trainer.bundle.scripts.uncertainty import write_table

        write_table(target / UNCERTAINTY_FOLDER)
    return target


def _cases(source: Path, model: TrainedModel) -> Cases:
    """The images of each case, in the order of their channels."""
    ending = model.dataset_json["file_ending"]
    if not source.exists():
        raise InputError(f"input {source} does not exist; name a folder of images, or one image")
    found = files_by_case(str(source if source.is_dir() else source.absolute().parent), ending, strict=source.is_dir())
    if source.is_file():
        name = source.name.removesuffix(ending)[:-5]
        found = {case: channels for case, channels in found.items() if case == name}
    if not found:
        raise InputError(f"no image in input {source}: the model needs files named CASE_0000{ending}")
    numbers = range(_files_per_case(model))
    for case, channels in found.items():
        if sorted(channels) != list(numbers):
            names = ", ".join(f"{case}_{number:04d}{ending}" for number in numbers)
            there = ", ".join(Path(file).name for _, file in sorted(channels.items()))
            raise InputError(f"case {case} in {source} has {there}; the model needs {names}")
    return {case: [channels[number] for number in numbers] for case, channels in found.items()}


def _files_per_case(model: TrainedModel) -> int:
    from alhvr_trainer.config.dataset_json import channel_names  # here, for the help does without pydantic

    channels = len(channel_names(model.dataset_json))
    # nnU-Net's reader of pictures takes all colors out of one file
    return 1 if model.plans["image_reader_writer"] == "NaturalImage2DIO" and channels in (3, 4) else channels


def _previous(model: TrainedModel, folder: str | Path | None, cases: Cases) -> list[Path]:
    """The segmentations of a cascade's first stage."""
    stage = model.configuration_manager.previous_stage_name
    if stage is None:
        if folder is not None:
            raise InputError(f"previous_stage is for the second stage of a cascade, not for {model.configuration}")
        return []
    if folder is None:
        raise InputError(
            f"{model.configuration} is the second stage of a cascade: predict with {stage} first, and name the folder "
            "of its segmentations: --previous_stage FOLDER"
        )
    files = [Path(folder) / f"{case}{model.dataset_json['file_ending']}" for case in cases]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist: predict this case with {stage} first")
    return files


def _check_scores(cases: Cases, target: Path, ending: str, origin: list[dict[str, Any]]) -> None:
    """nnU-Net leaves out cases that are segmented already, by whatever model, and with them their maps and scores."""
    for case in cases:
        there, scores = target / f"{case}{ending}", target / UNCERTAINTY_FOLDER / f"{case}.json"
        if not there.exists():
            continue
        if not scores.exists():
            raise InputError(f"{there} is there without {scores}: remove it, or predict without --continue_prediction")
        found = read_object(scores).get(PREDICTED_BY)
        if found != origin:
            raise InputError(
                f"{scores} was predicted by {cut(_said(found), 300)}, and now {_said(origin)} is named: choose another "
                "--output, or predict without --continue_prediction"
            )


def _said(origin: Any) -> str:
    """The checkpoints in words; what a file says may be anything."""
    try:
        return ", ".join(
            f"{each['model']}/{each['checkpoint']} (SHA-256 {each['sha256'][:8]}, network {each['network']}, "
            f"{'with' if each['mirroring'] else 'without'} mirroring)"
            for each in origin
        )
    except (TypeError, KeyError):
        return "an unknown model"


def _written(target: Path, cases: Cases, model: TrainedModel) -> list[Path]:
    ending = model.dataset_json["file_ending"]
    segmentations = [target / f"{case}{ending}" for case in cases]
    return [*segmentations, *(target / f"{name}.json" for name in ("dataset", "plans", "predict_from_raw_data_args"))]


@dataclass(frozen=True)
class Predicting:
    """How a model predicts."""

    model: TrainedModel
    network: str
    device: str
    step_size: float
    mirroring: bool
    uncertainty: bool

    def asked(self) -> Uncertainty | None:
        """What tells how sure the model is, if that is wanted."""
        if not self.uncertainty:
            return None
        from alhvr_trainer.commands.uncertainty_maps import uncertainty_of

        return uncertainty_of(self.model, self.network, self.mirroring)

    def predictor(self, asked: Uncertainty | None) -> tuple[Any, AbstractContextManager[None]]:
        """nnU-Net's, with the model's weights, and what to predict within, so that maps and scores are written.

        Args:
            asked: what :meth:`asked` gives.
        """
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        from alhvr_trainer.commands.link import let_nnunet_find_us
        from alhvr_trainer.config.methods import method_of
        from alhvr_trainer.models import model_members
        from alhvr_trainer.trainers.checkpoints import read_checkpoint

        model = self.model
        if method_of(model.trainer):
            let_nnunet_find_us()
        for number in model.folds:
            read_checkpoint(model.checkpoint_path(number))
        members = model_members(model, self.network) if self.network != "a" else []
        if self.device == "cuda":
            torch.set_num_threads(1)  # as nnUNetv2_predict does
        device = torch.device(self.device)
        options = {"tile_step_size": self.step_size, "use_mirroring": self.mirroring, "device": device}
        context: AbstractContextManager[None] = nullcontext()
        if asked is None:
            predictor = nnUNetPredictor(**options)
        else:
            from alhvr_trainer.commands.uncertainty_maps import OpinionPredictor, uncertainty_maps

            predictor, context = OpinionPredictor(asked, **options), uncertainty_maps(asked)
        try:
            predictor.initialize_from_trained_model_folder(str(model.folder), model.folds, model.weights_file)
        # nnU-Net does not know the trainer, or the weights are of other plans
        except (RuntimeError, KeyError) as error:
            raise InputError(f"nnU-Net cannot load {model.folder}: {one_line(error)}") from error
        if members:
            predictor.list_of_parameters = [member.weights for member in members]
        return predictor, context


def _predict_on_cluster(address: str, how: Predicting, cases: Cases, target: Path, *options: Any) -> Path:
    """A few parts for each worker, so that the quick ones take more; a part whose worker dies is done again."""
    from alhvr_trainer.cluster import ClusterExecutor, cluster_executor, scheduler
    from alhvr_trainer.data.workers import run_on_cases

    target.mkdir(parents=True, exist_ok=True)
    images = list(cases.items())
    with scheduler(address):
        executor = cluster_executor()
        assert isinstance(executor, ClusterExecutor)
        parts = min(len(cases), PARTS_PER_WORKER * executor.workers)
        arguments = {f"part {part}": (how, dict(images[part::parts]), target, *options) for part in range(parts)}
        run_on_cases(predict_part, arguments, parts, "Segment cases")
    return target


def predict_part(
    how: Predicting,
    cases: Cases,
    target: Path,
    verify: bool,
    save_probabilities: bool,
    continue_prediction: bool,
    previous_stage: str | Path | None,
) -> None:
    """Some cases, in this process alone: a worker of Dask may have no processes of its own.

    Args:
        how: the model predicts.
        cases: their images.
        target, verify, save_probabilities, continue_prediction, previous_stage: see :func:`predict`.
    """
    from alhvr_trainer.devices import check_device

    check_device(how.device)
    if verify:
        _verify(cases, how.model)
    predictor, maps = how.predictor(how.asked())
    with maps:
        predictor.predict_from_files_sequential(
            list(cases.values()),
            [str(target / case) for case in cases],
            save_probabilities=save_probabilities,
            overwrite=not continue_prediction,
            folder_with_segs_from_prev_stage=None if previous_stage is None else str(previous_stage),
        )


def _verify(cases: Cases, model: TrainedModel) -> None:
    """Every image can be read, as nnU-Net's reader reads it: its workers would not say which one they died of."""
    import numpy as np
    from tqdm import tqdm

    from alhvr_trainer.bundle.scripts.nifti import check_complete

    reader = model.plans_manager.image_reader_writer_class()
    for files in tqdm(cases.values(), desc="check images", unit="case"):
        for file in files:
            check_complete(Path(file))
        try:
            image, _ = reader.read_images(files)
        except Exception as error:  # the readers sit on several libraries, each with errors of its own
            raise InputError(f"cannot read {', '.join(files)}: {one_line(error)}") from error
        bad = int(math.prod(image.shape) - np.isfinite(image).sum())
        if bad:
            raise InputError(f"{', '.join(files)}: {bad} voxels are NaN or infinite: replace them")
