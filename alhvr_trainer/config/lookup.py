"""The dataset, plans and trainer that a command names: found, chosen where there is one only, close names suggested."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.config.files import read_json
from alhvr_trainer.config.names import PLANS_NAME
from alhvr_trainer.errors import InputError, did_you_mean

NOT_PLANS = ("dataset", "dataset_fingerprint", "splits_final")
"""JSON files beside the plans."""


def dataset_in(variable: str, dataset: int | str) -> str:
    """``DatasetXXX_Name`` for 27, ``"027"`` or the name itself, in one of nnU-Net's folders.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.
        dataset: number or name.

    Raises:
        InputError: the variable is not set, or no or several datasets are called so.
    """
    folder = Path(nnunet_folder(variable))
    text = str(dataset)
    names = sorted(path.name for path in folder.glob("Dataset[0-9][0-9][0-9]_*") if path.is_dir())
    prefix = f"Dataset{int(text):03d}_" if text.isdecimal() else None
    found = [name for name in names if name == text or (prefix and name.startswith(prefix))]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"several datasets have the number {text} in {variable} ({folder}): {', '.join(found)}")
    raise InputError(
        f"dataset {dataset!r} not found{did_you_mean(text, names)}; datasets in {variable} ({folder}): "
        f"{', '.join(names) or 'none'}"
    )


def plans_in(folder: Path) -> list[str]:
    """Identifiers of the plans in a dataset's folder in ``nnUNet_preprocessed``."""
    return [file.stem for file in sorted(folder.glob("*.json")) if file.stem not in NOT_PLANS and _is_plans(file)]


def _is_plans(file: Path) -> bool:
    try:
        content = read_json(file)
    except InputError:  # whoever names or takes it is told what is wrong with it
        return True
    return isinstance(content, dict) and "configurations" in content


def chosen_plans(plans: str | None, there: Iterable[str]) -> str:
    """The plans to use: those named, else the only ones that there are, else ALHVRPlans.

    Raises:
        InputError: none are named, and there are several, none of them called ALHVRPlans.

    Example:
        >>> chosen_plans(None, ["nnUNetPlans"]), chosen_plans(None, ["nnUNetPlans", "ALHVRPlans"])
        ('nnUNetPlans', 'ALHVRPlans')
    """
    there = sorted(set(there))
    if plans is not None:
        return plans
    if len(there) > 1 and PLANS_NAME not in there:
        raise InputError(f"name the plans, for there are several: {', '.join(f'-p {name}' for name in there)}")
    return there[0] if len(there) == 1 else PLANS_NAME


def no_such_plans(file: Path) -> InputError:
    """The error for plans that a dataset in ``nnUNet_preprocessed`` does not have."""
    there = plans_in(file.parent)
    listed = f"; there are: {', '.join(there)}" if there else ""
    dataset = int(file.parent.name[7:10]) if file.parent.name[7:10].isdecimal() else file.parent.name
    return InputError(
        f"{file} does not exist{did_you_mean(file.stem, there)}{listed}; make it with: "
        f"alhvr plan_and_preprocess -d {dataset}"
    )
