"""``splits_final.json``: which cases of each fold are labeled, unlabeled and for validation; read, checked, chosen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.config.files import is_list_of, is_name, read_json, write_json
from alhvr_trainer.config.names import UNLABELED_KEY
from alhvr_trainer.errors import InputError, did_you_mean, shown

if TYPE_CHECKING:
    import numpy as np

SPLITS_FILE = "splits_final.json"
Splits = list[dict[str, Any]]
"""One entry per fold: ``"train"``, ``"val"`` and, if labels are hidden, ``"unlabeled"``, each a list of cases."""
Amount = int | float | str | Sequence[str]
"""A number of groups, a share of them, or names."""
DEFAULT_VALIDATION_SHARE = 0.2
NNUNET_FOLDS = 5
"""Of the cross validation that nnU-Net makes where it finds no split; it fails on fewer cases."""
MOST_WITHOUT_VALIDATION = 2
NO_VALIDATION = "so its validation shows nothing about new scans"


def load_splits(raw_folder: str, preprocessed_folder: str) -> Splits:
    """``splits_final.json`` as nnU-Net uses it: the preprocessed folder's, else the raw folder's, else ``[]``.

    Raises:
        InputError: a file is not a list of folds, or both exist and disagree (nnU-Net refuses that, too, but does not
            look at ``"unlabeled"``).
    """
    loaded = []
    for folder in (preprocessed_folder, raw_folder):
        file = Path(folder) / SPLITS_FILE
        if file.is_file():
            loaded.append(read_json(file))
            check_splits(loaded[-1], str(file))
    if not loaded:
        return []
    used, source = loaded[0], loaded[-1]
    for fold, split in enumerate(source):
        other = used[fold] if fold < len(used) else {}
        for key in ("train", "val", UNLABELED_KEY):
            if key in split and set(split[key]) != set(other.get(key, [])):
                raise InputError(
                    f'"{key}" of fold {fold} differs between {Path(raw_folder) / SPLITS_FILE} and '
                    f"{Path(preprocessed_folder) / SPLITS_FILE}: delete the one that is out of date"
                )
    return used


def check_splits(splits: object, file: str = SPLITS_FILE) -> None:
    """The content of the file is a list of folds.

    Raises:
        InputError: names the fold and the key.
    """
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        form = f'[{{"train": [...], "{UNLABELED_KEY}": [...], "val": [...]}}]'
        raise InputError(f"{file} must be a list of folds: {form}")
    for fold, split in enumerate(splits):
        check_spelling(split, ("train", UNLABELED_KEY, "val"), f"fold {fold} in {file}")
        for key in ("train", "val", UNLABELED_KEY):
            cases = split.get(key, [] if key == UNLABELED_KEY else None)
            if not is_list_of(cases, is_name):
                raise InputError(f'"{key}" of fold {fold} in {file} must be a list of case names, found {shown(cases)}')
        times = Counter(split.get(UNLABELED_KEY, []))
        twice = next((case for case in times if times[case] > 1), None)
        if twice is not None:
            raise InputError(f'case "{twice}" is listed twice under "{UNLABELED_KEY}" of fold {fold} in {file}')


def check_spelling(names: Iterable[str], known: tuple[str, ...], where: str) -> None:
    """No name is a misspelling, in letters or capitals, of a known one.

    Raises:
        InputError: one is.
    """
    for name in names:
        near = get_close_matches(name.lower(), [each.lower() for each in known], 1, cutoff=0.9)
        if near and name not in known:
            raise InputError(f'{where} has "{name}"{did_you_mean(name, known)}')


def is_in_file(splits: Splits, fold: int | str) -> bool:
    """Whether ``splits_final.json`` holds the fold: not ``"all"``, and none beyond its end."""
    return fold != "all" and int(fold) < len(splits)


def hidden_cases(splits: Splits, fold: int | str) -> list[str]:
    """The cases under ``"unlabeled"`` of a fold; for fold ``"all"`` and folds beyond the file those of all folds.

    A fold that the file does not hold cannot say what it hides. nnU-Net then uses all of ``imagesTr``; here a case
    that some fold hides stays hidden, unless another fold trains on its label.

    Example:
        >>> hidden_cases([{"train": ["a"], "unlabeled": ["b"], "val": ["c"]}], 0)
        ['b']
    """
    if not is_in_file(splits, fold):
        hidden = {case for split in splits for case in split.get(UNLABELED_KEY, [])}
        return sorted(hidden.difference(*(split.get("train", []) for split in splits)))
    return list(splits[int(fold)].get(UNLABELED_KEY, []))


def choose_splits(
    cases: Sequence[str],
    labeled: Amount,
    folds: int = 1,
    validation: Amount | None = None,
    group: str | None = None,
    seed: int = 0,
) -> list[dict[str, list[str]]]:
    """Folds with ``"train"`` (labeled), ``"unlabeled"`` and ``"val"``; every case is in exactly one list of
    a fold.

    Args:
        cases: case names.
        labeled: number of labeled groups, share of the training groups, or names; see ``alhvr make_split``.
        folds: number of folds; a cross validation unless ``validation`` is given.
        validation: as ``labeled``, but a share of all groups.
        group: regular expression; cases in whose names it finds the same text form a group. Default: every
            case.
        seed: of the random choice.

    Raises:
        InputError: amounts, names or expression do not fit the cases.

    Example:
        >>> choose_splits(["a_1", "a_2", "b_1", "b_2", "c_1"], labeled=1, validation=["c"], group="^.")
        [{'train': ['a_1', 'a_2'], 'unlabeled': ['b_1', 'b_2'], 'val': ['c_1']}]
    """
    import numpy as np  # here, for the commands' help does without it

    groups = groups_of(cases, group)
    names = sorted(groups)
    shuffled = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    parts = _validation_parts(shuffled, folds, validation, groups, seed)
    splits = []
    for fold, val in enumerate(parts):
        training = _without(names, val)
        train = _chosen("labeled", labeled, training, groups, np.random.default_rng([seed, fold, 1]))
        unlabeled = _without(training, train)
        lists = {"train": train, "unlabeled": unlabeled, "val": val}
        splits.append({key: sorted(case for name in chosen for case in groups[name]) for key, chosen in lists.items()})
    return splits


def split_for_few_cases(cases: Sequence[str]) -> list[dict[str, list[str]]] | None:
    """Folds for fewer labeled cases than the five of nnU-Net's cross validation; None where there are enough.

    Each case is the validation case of one fold. One or two are both trained and validated on: leaving one out would
    cost half of all labels.

    Example:
        >>> split_for_few_cases(["a", "b", "c"])[0], split_for_few_cases(["a", "b"])
        ({'train': ['b', 'c'], 'val': ['a']}, [{'train': ['a', 'b'], 'val': ['a', 'b']}])
    """
    cases = sorted(cases)
    if len(cases) >= NNUNET_FOLDS:
        return None
    if len(cases) <= MOST_WITHOUT_VALIDATION:
        return [{"train": cases, "val": cases}]
    return [{"train": [other for other in cases if other != case], "val": [case]} for case in cases]


def write_split_for_few_cases(folder: str | Path, cases: Sequence[str]) -> None:
    """Write the split of :func:`split_for_few_cases` where nnU-Net looks for one, unless there is one already.

    Args:
        folder: of the dataset in ``nnUNet_preprocessed``.
        cases: all labeled ones.
    """
    file = Path(folder) / SPLITS_FILE
    splits = None if file.exists() else split_for_few_cases(cases)
    if splits:
        write_json(splits, file)
        how = (
            "each is left out of one fold"
            if len(splits) > 1
            else f"fold 0 trains and validates on all, {NO_VALIDATION}"
        )
        print(f"{file}: {len(cases)} labeled case{'s' if len(cases) > 1 else ''}; {how}")


def split_summary(splits: list[dict[str, list[str]]]) -> list[str]:
    """One line for each fold."""
    return [
        f"fold {fold}: {len(split['train'])} labeled, {len(split['unlabeled'])} unlabeled, "
        f"{len(split['val'])} validation cases"
        for fold, split in enumerate(splits)
    ]


def groups_of(cases: Sequence[str], group: str | None) -> dict[str, list[str]]:
    """Text that the expression finds in the names -> the cases in whose names it does; without one each case by itself.

    Raises:
        InputError: it is not a regular expression, or finds nothing in a name.

    Example:
        >>> groups_of(["a_1", "a_2", "b_1"], "^.")
        {'a': ['a_1', 'a_2'], 'b': ['b_1']}
    """
    if group is None:
        return {case: [case] for case in cases}
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise InputError(f'"group" is not a regular expression: {error}') from error
    groups: dict[str, list[str]] = {}
    for case in cases:
        match = pattern.search(case)
        if match is None:
            raise InputError(f'"group" {group!r} finds nothing in the case name "{case}"')
        groups.setdefault(match[0], []).append(case)
    return groups


def _without(names: list[str], others: list[str]) -> list[str]:
    left_out = set(others)
    return [name for name in names if name not in left_out]


def _validation_parts(
    shuffled: list[str], folds: int, validation: Amount | None, groups: dict[str, list[str]], seed: int
) -> list[list[str]]:
    import numpy as np

    if validation is None and folds > 1:
        if folds > len(shuffled):
            raise InputError(f'"folds" is {folds}, but there are only {len(shuffled)} cases or groups')
        return [sorted(part.tolist()) for part in np.array_split(np.array(shuffled), folds)]
    amount = DEFAULT_VALIDATION_SHARE if validation is None else validation
    return [
        _chosen("validation", amount, sorted(shuffled), groups, np.random.default_rng([seed, fold, 0]))
        for fold in range(folds)
    ]


def _chosen(
    what: str, amount: Amount, names: list[str], groups: dict[str, list[str]], random: np.random.Generator
) -> list[str]:
    """The groups out of ``names`` that ``amount`` asks for."""
    if isinstance(amount, (str, list, tuple)):
        listed = amount.split(",") if isinstance(amount, str) else amount
        return _listed(what, [str(name).strip() for name in listed], names, groups)
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount <= 0:
        raise InputError(f'"{what}" must be a number, a share between 0 and 1, or names, found {amount!r}')
    if isinstance(amount, float) and amount >= 1:
        raise InputError(f'"{what}" is {amount}: a share must be below 1; give a number of cases without a point')
    count = max(1, round(amount * len(names))) if isinstance(amount, float) else amount
    if count > len(names):
        raise InputError(f'"{what}" is {count}, but there are only {len(names)} cases or groups to choose from')
    return sorted(random.choice(names, count, replace=False).tolist())


def _listed(what: str, listed: list[str], names: list[str], groups: dict[str, list[str]]) -> list[str]:
    group_of = {case: name for name in names for case in groups[name]} | {name: name for name in names}
    chosen = []
    for name in listed:
        if name not in group_of:
            raise InputError(f'"{what}" names "{name}", which is not a case (left) to choose')
        chosen.append(group_of[name])
    return sorted(set(chosen))
