"""The form of every key of nnU-Net's plans that nnU-Net's training or we rely on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import nnunetv2
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from alhvr_trainer.config.files import is_list_of, is_name, is_positive, is_whole

Rule = tuple[Callable[[Any], bool], str]
"""What accepts a value, and how a message names such values; those that start with "nothing or" are optional."""


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


def _are_configurations(value: Any) -> bool:
    return isinstance(value, dict) and all(is_name(key) and isinstance(entry, dict) for key, entry in value.items())


_NAME_RULE: Rule = (is_name, "a name")
_THREE_NUMBERS: Rule = (lambda value: is_list_of(value, is_positive, 3), "3 positive numbers")
TOP: dict[str, Rule] = {
    "dataset_name": _NAME_RULE,
    "plans_name": _NAME_RULE,
    "configurations": (_are_configurations, "an object of configurations"),
    "image_reader_writer": (_is_reader, "the name of one of nnU-Net's readers"),
    "transpose_forward": (_is_permutation, "the axes 0, 1, 2 in some order"),
    "transpose_backward": (_is_permutation, "the axes 0, 1, 2 in some order"),
    "original_median_spacing_after_transp": _THREE_NUMBERS,
    "original_median_shape_after_transp": _THREE_NUMBERS,
    "label_manager": (in_nnunet("utilities.label_handling"), "nothing or the name of one of nnU-Net's label managers"),
}
CONFIGURATION: dict[str, Rule] = {
    "data_identifier": _NAME_RULE,
    "preprocessor_name": (in_nnunet("preprocessing"), "the name of one of nnU-Net's preprocessors"),
    "batch_size": (lambda value: True, "a whole number"),
    "patch_size": (lambda value: isinstance(value, list), "2 or 3 whole numbers"),
    "spacing": (lambda value: True, "2 or 3 positive numbers"),
    "normalization_schemes": (lambda value: True, "one normalization per channel"),
    "use_mask_for_norm": (lambda value: True, "one boolean per channel"),
    "resampling_fn_data": (_is_resampling, "the name of one of nnU-Net's resampling functions"),
    "resampling_fn_seg": (_is_resampling, "the name of one of nnU-Net's resampling functions"),
    "resampling_fn_probabilities": (_is_resampling, "the name of one of nnU-Net's resampling functions"),
    "resampling_fn_data_kwargs": (_are_resampling_options, "an object of options"),
    "resampling_fn_seg_kwargs": (_are_resampling_options, "an object of options"),
    "resampling_fn_probabilities_kwargs": (_are_resampling_options, "an object of options"),
    "architecture": (_is_architecture, 'an object with "network_class_name", "arch_kwargs", "_kw_requires_import"'),
    "batch_dice": (lambda value: isinstance(value, bool), "true or false"),
    "previous_stage": (lambda value: value is None or is_name(value), "nothing or a configuration"),
    "next_stage": (
        lambda value: value is None or is_name(value) or is_list_of(value, is_name),
        "nothing or a configuration",
    ),
}
