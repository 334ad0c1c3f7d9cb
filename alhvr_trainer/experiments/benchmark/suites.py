"""Suites: what a benchmark compares, as a small YAML file.

A suite names the data set, the plans, the split with one fold per labeled fraction, the seeds and the methods::

    name: hippocampus-cpu
    description: MSD's Hippocampus, small 2D network, hours on two CPU cores
    dataset: Dataset004_Hippocampus      # in nnUNet_raw; "phantom" is generated
    configuration: 2d
    plans: hippocampus_2d                # a ready plan: plans/*.json or a file
    splits: hippocampus.json             # of the package, a file, or splits_final.json in the raw data set
    folds: {5 labeled: 0, 20 labeled: 1}
    seeds: [0, 1, 2]
    settings: {num_epochs: 60}           # of all methods: keys of the plans' "alhvr" block
    methods:
      - {name: Supervised, trainer: SupervisedTrainer}
      - {name: ALHVR, trainer: ALHVRTrainer, settings: {consistency_weight: 0.3}}
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alhvr_trainer.config.files import is_list_of, is_name, is_whole
from alhvr_trainer.errors import InputError, cut, one_line, shown

FOLDER = Path(__file__).resolve().parent / "suites"
PHANTOM = "phantom"
SUPERVISED = ("SupervisedTrainer", "SupervisedWholeBatchTrainer")
"""The trainers that take no unlabeled cases; their variants have names that begin like them."""
TABLES = ("comparison", "ablation", "regions")
"""The layouts of the paper's Tables 1 to 3, of its Table 5, and of the slides' Table 1."""
ENVIRONMENT = ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc", "nnUNet_compile")
"""What speed and repeatability depend on; a suite may set defaults for these, and each result records them."""
_MOST = 2**32 - 1


@dataclass(frozen=True)
class Method:
    """One row of the tables: a trainer and what it is set to."""

    name: str
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        """Whether it takes labeled cases alone."""
        return self.trainer.startswith(SUPERVISED)


@dataclass(frozen=True)
class Suite:
    """A checked suite; the keys are those of the YAML file."""

    name: str
    dataset: str
    configuration: str
    plans: str
    splits: str
    folds: dict[str, int]
    """Name of the labeled fraction -> fold in the split."""
    seeds: list[int]
    methods: list[Method]
    description: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    fully_labeled: dict[str, int] = field(default_factory=dict)
    """Further folds, without unlabeled cases: the upper bound, for the trainers in SUPERVISED alone."""
    test: bool = False
    """Measure imagesTs against labelsTs; else the fold's validation cases."""
    group: str | None = None
    """Regular expression: cases in whose names it finds the same text, as a patient's frames, count as one in tests."""
    tables: dict[str, list[str]] = field(default_factory=dict)
    """Table out of TABLES -> its methods; default: a comparison of all."""
    phantom: dict[str, int] = field(default_factory=dict)
    """Numbers of cases and seed of the generated data set."""
    environment: dict[str, str] = field(default_factory=dict)
    """Defaults of the variables in ENVIRONMENT; what the user has set goes first."""

    @property
    def all_folds(self) -> dict[str, int]:
        return {**self.folds, **self.fully_labeled}

    def settings_of(self, method: Method, seed: int) -> dict[str, Any]:
        """The keys of the plans' ``alhvr`` block that a run sets: the suite's, then the method's, then the seed."""
        return {**self.settings, **method.settings, "seed": seed}


def shipped_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("[!.]*.yaml"))


def load_suite(name_or_file: str) -> Suite:
    """Read and check a suite.

    Args:
        name_or_file: a name out of :func:`shipped_suites`, or the path of a YAML file.

    Raises:
        InputError: no such suite, no YAML, an unknown or missing key, or a value of the wrong form; names file and key.

    Example:
        >>> load_suite("hippocampus-cpu").folds
        {'5 labeled': 0, '20 labeled': 1}
    """
    file = Path(name_or_file)
    if not file.is_file():
        file = FOLDER / f"{name_or_file}.yaml"
    if not file.is_file():
        raise InputError(f"there is no suite {name_or_file}; suites: {', '.join(shipped_suites())}, or a YAML file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML: {one_line(error)}") from error
    return parse_suite(content, str(file))


def parse_suite(content: object, where: str) -> Suite:
    """A suite out of a YAML file's content; ``where`` names it in messages (see :func:`load_suite`)."""
    content = _object(content, where)
    _check_keys(
        content,
        where,
        _RULES,
        ("description", "fully_labeled", "settings", "test", "group", "tables", PHANTOM, "environment"),
    )
    methods = [_method(entry, f"{where}, method {number}") for number, entry in enumerate(content["methods"], 1)]
    names = [method.name for method in methods]
    for kind, labels in (("methods", names), ("folds", [*content["folds"], *content.get("fully_labeled", [])])):
        files = [file_name(label) for label in labels]
        twice = [label for label in labels if files.count(file_name(label)) > 1]
        if twice:
            raise InputError(f'{where}: two {kind} are called "{twice[0]}" or nearly so; give each a name of its own')
    suite = Suite(**{**content, "methods": methods})
    if (suite.dataset == PHANTOM) != bool(suite.phantom):
        raise InputError(
            f'{where}: "{PHANTOM}" (numbers of cases) belongs to "dataset: {PHANTOM}", one without the other'
        )
    for table, rows in suite.tables.items():
        unknown = [row for row in rows if row not in names]
        if unknown:
            raise InputError(f'{where}: table "{table}" names "{unknown[0]}"; the methods are {", ".join(names)}')
    return suite


def file_name(label: str) -> str:
    """A method's or fold's name as a part of a file's name.

    Example:
        >>> file_name("ALHVR, β 0.9")
        'alhvr_β_0.9'
    """
    return re.sub(r"[^\w.+-]+", "_", label.strip()).lower()


def _method(content: object, where: str) -> Method:
    content = _object(content, where)
    _check_keys(content, where, _METHOD_RULES, ("settings",))
    return Method(**content)


def _object(content: object, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{where} must map keys to values, found {shown(content)}")
    return content


def _check_keys(content: dict[str, Any], where: str, rules: dict[str, Any], optional: tuple[str, ...]) -> None:
    unknown = sorted(set(content) - set(rules))
    if unknown:
        raise InputError(f"{where}: unknown key {cut(', '.join(unknown))}; valid keys: {', '.join(rules)}")
    missing = [key for key in rules if key not in content and key not in optional]
    if missing:
        raise InputError(f'{where}: "{missing[0]}" is missing; it must be {rules[missing[0]][1]}')
    for key, value in content.items():
        accepts, form = rules[key]
        if not accepts(value):
            raise InputError(f'{where}: "{key}" is {shown(value)}; it must be {form}')


def _is_label(value: object) -> bool:
    """Text for a table's cell and a flag's list: no comma, no bar, one line."""
    return isinstance(value, str) and bool(value.strip()) and len(value) <= 60 and not set(value) & set(",|;\n\r\t")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


def _is_settings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value) and "seed" not in value


def _is_map(value: object, accepts_key: Any, accepts: Any) -> bool:
    return isinstance(value, dict) and all(accepts_key(k) and accepts(v) for k, v in value.items())


def _is_fold(value: object) -> bool:
    return is_whole(value, 0, 999)


def _is_distinct(value: object, accepts: Any) -> bool:
    return is_list_of(value, accepts) and bool(value) and len(set(value)) == len(value)  # type: ignore[arg-type,call-overload]


_METHOD_RULES: dict[str, Any] = {
    "name": (_is_label, "text of at most 60 letters, without commas, semicolons and bars"),
    "trainer": (is_name, "the name of a trainer, e.g. ALHVRTrainer"),
    "settings": (_is_settings, 'settings of the plans\' "alhvr" block, without "seed"'),
}
_RULES: dict[str, Any] = {
    "name": (is_name, "text that can name a file"),
    "description": (_is_text, "text"),
    "dataset": (is_name, f'a data set in nnUNet_raw, as Dataset027_ACDC or ACDC, or "{PHANTOM}"'),
    "configuration": (is_name, "a configuration of the plans, e.g. 2d"),
    "plans": (_is_text, "a ready plan (plans/*.json) or a JSON file"),
    "splits": (_is_text, "a file of splits"),
    "folds": (
        lambda v: bool(v) and _is_map(v, _is_label, _is_fold),
        "names of labeled fractions, each with its fold in the split, e.g. {5 labeled: 0}",
    ),
    "fully_labeled": (
        lambda v: _is_map(v, _is_label, _is_fold),
        "names of folds without unlabeled cases, each with its number, e.g. {160 labeled: 2}",
    ),
    "seeds": (lambda v: _is_distinct(v, lambda s: is_whole(s, 0, _MOST)), "a list of different whole numbers"),
    "settings": (_is_settings, 'settings of the plans\' "alhvr" block, without "seed" (see "seeds")'),
    "methods": (lambda v: isinstance(v, list) and bool(v), "a list of methods: {name, trainer, settings}"),
    "test": (lambda v: isinstance(v, bool), "true or false"),
    "group": (_is_pattern, r"a regular expression that finds the patient in a case's name, e.g. patient\d+"),
    "tables": (
        lambda v: _is_map(v, lambda k: k in TABLES, lambda rows: _is_distinct(rows, _is_label)),
        f"lists of methods for the tables {', '.join(TABLES)}",
    ),
    PHANTOM: (
        lambda v: _is_map(v, lambda k: k in ("labeled", "unlabeled", "test", "seed"), lambda n: is_whole(n, 0, 10_000)),
        "numbers {labeled, unlabeled, test, seed}",
    ),
    "environment": (
        lambda v: _is_map(v, lambda k: k in ENVIRONMENT, _is_text),
        f'text for the variables {", ".join(ENVIRONMENT)}, e.g. "1"',
    ),
}
