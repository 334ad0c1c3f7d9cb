"""The keys of nnU-Net's plans that nnU-Net's training or we rely on; there may be others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import nnunetv2
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from pydantic import ConfigDict, Field

from alhvr_trainer.config.files import is_list_of, is_name, is_positive, is_whole
from alhvr_trainer.config.validation import Entries, must


def is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e30


def in_nnunet(package: str) -> Callable[[Any], bool]:
    """Whether a name is that of a class in one of nnU-Net's packages."""

    def known(name: Any) -> bool:
        folder = os.path.join(nnunetv2.__path__[0], *package.split("."))
        return is_name(name) and isinstance(recursive_find_python_class(folder, name, f"nnunetv2.{package}"), type)

    return known


def _is_reader(name: Any) -> bool:
    try:
        return is_name(name) and isinstance(recursive_find_reader_writer_by_name(name), type)
    except RuntimeError:
        return False


def _is_resampling(name: Any) -> bool:
    try:
        return is_name(name) and callable(recursive_find_resampling_fn_by_name(name))
    except RuntimeError:
        return False


def _are_resampling_options(options: Any) -> bool:
    if not isinstance(options, dict):
        return False
    orders = all(is_whole(options.get(key, 0), 0, 5) for key in ("order", "order_z"))
    return orders and all(value is None or isinstance(value, (bool, int, float, str)) for value in options.values())


def _is_permutation(value: Any) -> bool:
    return is_list_of(value, lambda axis: is_whole(axis, 0, 2), 3) and len(set(value)) == 3


def _is_architecture(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_name(value.get("network_class_name"))
        and isinstance(value.get("arch_kwargs"), dict)
        and is_list_of(value.get("_kw_requires_import"), lambda key: key in value["arch_kwargs"])
    )


Name = Annotated[str, must(is_name)]
Axes = Annotated[list[Any], must(_is_permutation)]
ThreeNumbers = Annotated[list[Any], must(lambda value: is_list_of(value, is_positive, 3))]
Resampling = Annotated[Any, must(_is_resampling)]
Options = Annotated[Any, must(_are_resampling_options)]
_READER = "the name of one of nnU-Net's readers"
_RESAMPLING = "the name of one of nnU-Net's resampling functions"
_AXES = "the axes 0, 1, 2 in some order"
_STAGE = "null or a configuration"


class _PlansEntries(Entries):
    model_config = ConfigDict(extra="ignore")


class Plans(_PlansEntries):
    """The keys of all configurations."""

    dataset_name: Name = Field(description="a name")
    plans_name: Name = Field(description="a name")
    configurations: dict[Name, dict[str, Any]] = Field(description="an object of configurations")
    image_reader_writer: Annotated[Any, must(_is_reader)] = Field(description=_READER)
    transpose_forward: Axes = Field(description=_AXES)
    transpose_backward: Axes = Field(description=_AXES)
    original_median_spacing_after_transp: ThreeNumbers = Field(description="3 positive numbers")
    original_median_shape_after_transp: ThreeNumbers = Field(description="3 positive numbers")
    label_manager: Annotated[Any, must(in_nnunet("utilities.label_handling"))] = Field(
        "LabelManager", description="the name of one of nnU-Net's label managers"
    )


class Configuration(_PlansEntries):
    """The keys of one configuration; ``check_numbers`` and ``check_schemes`` look at numbers and normalization."""

    data_identifier: Name = Field(description="a name")
    preprocessor_name: Annotated[Any, must(in_nnunet("preprocessing"))] = Field(
        description="the name of one of nnU-Net's preprocessors"
    )
    batch_size: Any = Field(description="a whole number")
    patch_size: list[Any] = Field(description="2 or 3 whole numbers")
    spacing: Any = Field(description="2 or 3 positive numbers")
    normalization_schemes: Any = Field(description="one normalization per channel")
    use_mask_for_norm: Any = Field(description="one boolean per channel")
    resampling_fn_data: Resampling = Field(description=_RESAMPLING)
    resampling_fn_seg: Resampling = Field(description=_RESAMPLING)
    resampling_fn_probabilities: Resampling = Field(description=_RESAMPLING)
    resampling_fn_data_kwargs: Options = Field(description="an object of options")
    resampling_fn_seg_kwargs: Options = Field(description="an object of options")
    resampling_fn_probabilities_kwargs: Options = Field(description="an object of options")
    architecture: Annotated[Any, must(_is_architecture)] = Field(
        description='an object with "network_class_name", "arch_kwargs", "_kw_requires_import"'
    )
    batch_dice: bool = Field(description="true or false")
    previous_stage: Name | None = Field(None, description=_STAGE)
    next_stage: Name | list[Name] | None = Field(None, description=_STAGE)
