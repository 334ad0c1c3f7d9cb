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
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from alhvr_trainer.config.files import is_name
from alhvr_trainer.config.validation import Entries, must, validated
from alhvr_trainer.errors import InputError, one_line, shown

FOLDER = Path(__file__).resolve().parent / "suites"
PHANTOM = "phantom"
SUPERVISED = ("SupervisedTrainer", "SupervisedWholeBatchTrainer")
"""The trainers that take no unlabeled cases; their variants have names that begin like them."""


def _is_pattern(text: str) -> bool:
    try:
        return bool(text) and bool(re.compile(text))
    except re.error:
        return False


Name = Annotated[str, must(is_name)]
Label = Annotated[str, Field(max_length=60), must(lambda text: text.strip() and not set(text) & set(",|;\n\r\t"))]
"""Fit for a table's cell and a flag's list: no comma, no bar, one line."""
Fold = Annotated[int, Field(ge=0, le=999)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Settings = Annotated[dict[str, Any], must(lambda settings: "seed" not in settings)]
Distinct = must(lambda values: values and len(set(values)) == len(values))
TABLES = ("comparison", "ablation", "regions")
"""The layouts of the paper's Tables 1 to 3, of its Table 5, and of the slides' Table 1."""
ENVIRONMENT = ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc", "nnUNet_compile")
"""What speed and repeatability depend on; a suite may set defaults for these, and each result records them."""
NUMBERS = ("labeled", "unlabeled", "test", "seed")
Table = Annotated[str, must(TABLES.__contains__)]
Variable = Annotated[str, must(ENVIRONMENT.__contains__)]
Number = Annotated[str, must(NUMBERS.__contains__)]


class Method(Entries):
    """One row of the tables: a trainer and what it is set to."""

    name: Label = Field(description="text of at most 60 letters, without commas, semicolons and bars")
    trainer: Name = Field(description="the name of a trainer, e.g. ALHVRTrainer")
    settings: Settings = Field({}, description='settings of the plans\' "alhvr" block, without "seed"')

    @property
    def supervised(self) -> bool:
        """Whether it takes labeled cases alone."""
        return self.trainer.startswith(SUPERVISED)


class Suite(Entries):
    """A checked suite; the keys are those of the YAML file."""

    name: Name = Field(description="text that can name a file")
    description: str = Field("", description="text")
    dataset: Name = Field(description=f'a data set in nnUNet_raw, as Dataset027_ACDC or ACDC, or "{PHANTOM}"')
    configuration: Name = Field(description="a configuration of the plans, e.g. 2d")
    plans: str = Field(description="a ready plan (plans/*.json) or a JSON file")
    splits: str = Field(description="a file of splits")
    folds: Annotated[dict[Label, Fold], Field(min_length=1)] = Field(
        description="names of labeled fractions, each with its fold in the split, e.g. {5 labeled: 0}"
    )
    fully_labeled: dict[Label, Fold] = Field(
        {},
        description="names of folds without unlabeled cases (the upper bound, for labeled-only trainers alone), each "
        "with its number, e.g. {160 labeled: 2}",
    )
    seeds: Annotated[list[Seed], Distinct] = Field(description="a list of different whole numbers")
    settings: Settings = Field({}, description='settings of the plans\' "alhvr" block, without "seed" (see "seeds")')
    methods: Annotated[list[Method], Field(min_length=1)] = Field(
        description="a list of methods: {name, trainer, settings}"
    )
    test: bool = Field(False, description="true (measure imagesTs against labelsTs) or false (the validation cases)")
    group: Annotated[str, must(_is_pattern)] | None = Field(
        None, description=r"a regular expression that finds the patient in a case's name, e.g. patient\d+"
    )
    """Cases in whose names it finds the same text, as a patient's frames, count as one in tests."""
    tables: dict[Table, Annotated[list[Label], Distinct]] = Field(
        {},
        description=f"lists of methods for the tables {', '.join(TABLES)}",
    )
    """Default: a comparison of all."""
    phantom: dict[Number, Annotated[int, Field(ge=0, le=10_000)]] = Field(
        {}, description=f"numbers {{{', '.join(NUMBERS)}}}"
    )
    """Of the generated data set."""
    environment: dict[Variable, str] = Field(
        {}, description=f'text for the variables {", ".join(ENVIRONMENT)}, e.g. "1"'
    )
    """Defaults; what the user has set goes first."""

    @property
    def all_folds(self) -> dict[str, int]:
        return {**self.folds, **self.fully_labeled}

    def methods_of(self, table: str) -> list[str]:
        """Names of the methods that a table compares.

        Raises:
            InputError: the suite has no such table.
        """
        if table not in self.tables:
            raise InputError(
                f"suite {self.name} has no table {shown(table)}; there are {', '.join(self.tables) or 'none'}"
            )
        return self.tables[table]

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
        {'5 labelled': 0, '20 labelled': 1}
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
    methods = content.get("methods") if isinstance(content, dict) else None
    for number, entry in enumerate(methods if isinstance(methods, list) else [], 1):
        validated(Method, entry, f"{where}, method {number}")
    suite = validated(Suite, content, where)
    names = [method.name for method in suite.methods]
    for kind, labels in (("methods", names), ("folds", [*suite.folds, *suite.fully_labeled])):
        files = [file_name(label) for label in labels]
        twice = [label for label in labels if files.count(file_name(label)) > 1]
        if twice:
            raise InputError(f'{where}: two {kind} are called "{twice[0]}" or nearly so; give each its own name')
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
