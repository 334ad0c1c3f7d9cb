"""nnU-Net's experiment planner for two networks and a batch of labeled and unlabeled samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from alhvr_trainer.config.names import PLANS_NAME, SETTINGS_KEY
from alhvr_trainer.config.settings import split_batch
from alhvr_trainer.data.dataset import Dataset, named_dataset
from alhvr_trainer.data.fingerprint import (
    FINGERPRINT_FILE,
    ALHVRFingerprintExtractor,
    add_unlabeled_to_fingerprint,
    load_fingerprint,
    merged_with_unlabeled,
)
from alhvr_trainer.data.splits import write_split_for_few_cases
from alhvr_trainer.data.workers import default_processes
from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.memory import predicted_peak, relative_cost
from alhvr_trainer.planning.replanning import keep_changed_settings, plans_before
from alhvr_trainer.planning.templates import Template, alhvr_block, apply_template

FITS = 0.95
"""Share of the memory target that the predicted peak may take; the rest is for what a dry run does not see."""


class ALHVRPlanner(ExperimentPlanner):
    """Plans patch size, batch size and network as nnU-Net does, with three differences.

    - Spacings and shapes come from labeled and unlabeled cases; intensity statistics from the labeled
      foreground.
    - The GPU memory holds two networks, and the decoder's second pass on the unlabeled half of the batch; the peak
      memory of a training step is predicted and printed.
    - ``batch_size`` counts labeled and unlabeled samples; an ``alhvr`` block in each configuration splits
      it.

    Used by ``alhvr plan_and_preprocess``, and after ``alhvr link`` by ``nnUNetv2_plan_and_preprocess -pl
    ALHVRPlanner``.

    Raises:
        InputError: there is no unlabeled case, or one cannot be used.

    Example:
        >>> plans = ALHVRPlanner("Dataset027_ACDC").plan_experiment()
        >>> plans["configurations"]["2d"]["batch_size"], plans["configurations"]["2d"]["alhvr"]
        (16, {'unlabeled_batch_size': 8, 'threshold_proportion': 0.8})
    """

    # class attributes, as nnU-Net's functions fix the arguments of a planner
    source: Dataset | None = None
    """The dataset, with an up-to-date fingerprint; if None, the planner provides both."""
    template: Template | None = None
    """Ready plans to lay over."""
    wanted: tuple[str, ...] = ()
    """Configurations that the caller needs; if planning yields none of them, nothing is written."""
    default_plans_name = PLANS_NAME

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ):
        if self.source is None:
            self.source = named_dataset(maybe_convert_to_dataset_name(dataset_name_or_id))
            # leaves the file as it is unless hidden labels are in it (nnU-Net's own extractor) or it is missing
            ALHVRFingerprintExtractor(self.source.name, default_processes(), source=self.source).run()
            add_unlabeled_to_fingerprint(self.source, default_processes())
        self.folder = Path(self.source.preprocessed)
        # presets of nnU-Net have targets of their own
        target = {} if gpu_memory_target_in_gb is None else {"gpu_memory_target_in_gb": gpu_memory_target_in_gb}
        super().__init__(
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name or self.default_plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
            **target,
        )
        self.dataset_fingerprint: dict[str, Any] = merged_with_unlabeled(
            load_fingerprint(self.folder / FINGERPRINT_FILE)
        )
        # caps the batch size at 5 % of the voxels of the dataset; the file that nnU-Net copies stays as it is
        self.dataset_json["numTraining"] = len(self.dataset_fingerprint["spacings"])

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Give each plans identifier its own preprocessed data.

        nnU-Net's presets share those of nnUNetPlans, whose spacing and intensities leave unlabeled cases out.
        """
        return ExperimentPlanner.generate_data_identifier(self, configuration_name)

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> float:
        """Feature map values per sample, times what ALHVR takes more than nnU-Net: :func:`relative_cost`.

        nnU-Net's targets leave room for what convolution libraries and torch's allocator take; so do ours.
        """
        # nnU-Net's own estimate fails where nnUNet_n_proc_DA is 0, so its building blocks are called here
        with torch.device("meta"):  # only shapes are needed: no weights, no initialization
            network = get_network_from_plans(
                arch_class_name,
                arch_kwargs,
                arch_kwargs_req_import,
                input_channels,
                output_channels,
                allow_init=False,
            )
        residual = "n_blocks_per_stage" in arch_kwargs
        factor = relative_cost(len(patch_size), residual, output_channels)
        return float(network.compute_conv_feature_map_size(patch_size) * factor)

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plan of a configuration, and its ``alhvr`` block."""
        plan = super().get_plans_for_configuration(*args, **kwargs)
        plan[SETTINGS_KEY] = alhvr_block(plan["batch_size"], len(plan["patch_size"]))
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Apply the ready plans to the planner's, then the user's changed settings; nnU-Net then writes the file.

        Raises:
            InputError: the ready plans do not fit the dataset, or none of the wanted configurations is there.
        """
        for plan in plans["configurations"].values():
            if "architecture" in plan:
                self.fit_batch(plan)
        if self.template is not None:
            recursive_fix_for_json_export(plans)
            plans.update(apply_template(self.template, json.loads(json.dumps(plans)), self.dataset_json))
            print(f"{self.template.file} overrides: {', '.join(self.template.configurations)}")
        before = plans_before(self.folder / f"{self.plans_identifier}.json")
        there = [*plans["configurations"], *before["configurations"]]
        if self.wanted and not {*self.wanted} & {*there}:
            raise InputError(
                f"{self.dataset_name} gets no configuration {', '.join(self.wanted)}; there are: {', '.join(there)}"
            )
        print(*keep_changed_settings(plans, before), sep="\n", end="")
        for name, plan in plans["configurations"].items():
            if "architecture" in plan and SETTINGS_KEY in plan:
                print(f"{name}: a training step is predicted to take {self._predicted_gib(plan):.1f} GiB of GPU memory")
        super().save_plans(plans)
        write_split_for_few_cases(self.folder, list(self.dataset))

    def fit_batch(self, plan: dict[str, Any]) -> None:
        """Make the batch of a configuration smaller until a training step is predicted to fit the memory target.

        nnU-Net's residual presets are calibrated so closely that two networks would not always.
        """
        most = FITS * self.UNet_vram_target_GB
        while plan["batch_size"] > self.UNet_min_batch_size and (predicted := self._predicted_gib(plan)) > most:
            smaller = min(plan["batch_size"] - 1, int(plan["batch_size"] * most / predicted))
            plan["batch_size"] = max(self.UNet_min_batch_size, smaller)
            plan[SETTINGS_KEY] = alhvr_block(plan["batch_size"], len(plan["patch_size"]))

    def _predicted_gib(self, plan: dict[str, Any]) -> float:
        unlabeled = plan[SETTINGS_KEY].get("unlabeled_batch_size") or split_batch(plan["batch_size"])[1]
        labels, channels = len(self.dataset_json["labels"]), len(self.dataset_json["channel_names"])
        samples = max(1, plan["batch_size"] - unlabeled), unlabeled
        return predicted_peak(plan["architecture"], plan["patch_size"], channels, labels, *samples) / 2**30


class ALHVRPlannerResEncM(ALHVRPlanner, nnUNetPlannerResEncM):
    """nnU-Net's residual encoder preset M (8 GB), planned like :class:`ALHVRPlanner`."""

    default_plans_name = "ALHVRResEncUNetMPlans"


class ALHVRPlannerResEncL(ALHVRPlanner, nnUNetPlannerResEncL):
    """nnU-Net's residual encoder preset L (24 GB), planned like :class:`ALHVRPlanner`."""

    default_plans_name = "ALHVRResEncUNetLPlans"


class ALHVRPlannerResEncXL(ALHVRPlanner, nnUNetPlannerResEncXL):
    """nnU-Net's residual encoder preset XL (40 GB), planned like :class:`ALHVRPlanner`."""

    default_plans_name = "ALHVRResEncUNetXLPlans"


PLANNERS: dict[str, type[ALHVRPlanner]] = {
    planner.__name__: planner
    for planner in (ALHVRPlanner, ALHVRPlannerResEncM, ALHVRPlannerResEncL, ALHVRPlannerResEncXL)
}
