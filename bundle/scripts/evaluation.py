"""Compare what the bundle wrote with reference labels: the step that ``configs/evaluate.json`` adds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import ENDINGS, without_ending
from .input_error import InputError
from .label_files import Labels, common_unit, labels_of, listed, read_pair
from .metrics import case_metrics, summarize, table, write_metrics


class Evaluation:
    """Dice, Jaccard, HD95 and ASD of predicted cases, the numbers of ``alhvr evaluate``.

    Args:
        cases: what :func:`scripts.cases.find_cases` found.
        output_dir: where the predictions are written, and ``metrics.json`` and ``metrics.csv``.
        labels_dir: folder with the reference ``CASE.nii.gz`` (or another ending) of each case.
        dataset_json: nnU-Net's ``dataset.json``, which names the classes.

    Example:
        >>> evaluation = Evaluation(cases, "out", "labels", "dataset.json")     # doctest: +SKIP
        >>> evaluation.check_or_exit()      # before hours of inference      # doctest: +SKIP
        >>> evaluation.report_or_exit(evaluator)                             # doctest: +SKIP
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        labels_dir: str | Path,
        dataset_json: str | Path,
    ) -> None:
        self.cases = [case["case"] for case in cases]
        self.problem = getattr(cases, "problem", "")
        self.output_dir, self.labels_dir = Path(output_dir), Path(labels_dir)
        self.dataset_json = Path(dataset_json)

    def check(self) -> dict[str, Path]:
        """Reference file of each case that has one; says which have none.

        Raises:
            InputError: no case has a reference, or one has two.
        """
        if self.problem:
            raise InputError(self.problem)
        if not self.labels_dir.is_dir():
            raise InputError(f"labels_dir {self.labels_dir} does not exist; name the folder of reference labels")
        references = _files(self.labels_dir, self._ending())
        found = {case: references[case] for case in self.cases if case in references}
        if not found:
            raise InputError(
                f"no file in labels_dir {self.labels_dir} has the name of a case ({listed(self.cases, 3)}); "
                f"it holds {listed(references, 3) or 'no image'}; name references as CASE{self._ending()}"
            )
        missing, extra = set(self.cases) - set(found), set(references) - set(self.cases)
        if missing:
            print(f"left out, cases without reference: {listed(missing)}", flush=True)
        if extra:
            print(f"left out, references without case: {listed(extra)}", flush=True)
        return found

    def check_or_exit(self) -> None:
        """As :meth:`check`, but end the program with the error's line."""
        try:
            self.check()
        except InputError as error:
            raise SystemExit(f"bundle: {error}") from error

    def evaluate(self, failed: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Measure every case that has a reference, print the table and write it.

        Args:
            failed: case -> reason, for cases that this run did not predict; an older file does not count.

        Returns:
            What ``metrics.json`` holds: that of ``alhvr evaluate``, and ``failed``, case -> reason.

        Raises:
            InputError: no case could be measured.
        """
        references, dataset_json = self.check(), self._read_dataset_json()
        labels = labels_of(dataset_json["labels"])
        predictions = _files(self.output_dir, self._ending()) if self.output_dir.is_dir() else {}
        failures, measured, units = dict(failed or {}), {}, {}
        for case, reference in references.items():
            try:
                if case not in failures:
                    prediction = predictions.get(case)
                    measured[case], units[case] = _measure(case, prediction, reference, labels, dataset_json)
            except InputError as error:
                failures[case] = str(error)
        failures = {case: failures[case] for case in references if case in failures}
        if not measured:
            raise InputError(f"no case could be measured: {_reasons(failures)}")
        result = {**summarize(measured, common_unit(units)), "failed": failures}
        print(table(result), flush=True)
        write_metrics(result, self.output_dir)
        return result

    def report_or_exit(self, failed: Mapping[str, str] | None = None) -> None:
        """As :meth:`evaluate`; cases that could not be measured end the program with one line in the end."""
        try:
            failures = self.evaluate(failed)["failed"]
        except InputError as error:
            raise SystemExit(f"bundle: {error}") from error
        if failures:
            total = len(self.cases)
            raise SystemExit(f"bundle: {len(failures)} of {total} cases are not in the metrics: {_reasons(failures)}")

    def _read_dataset_json(self) -> dict[str, Any]:
        try:
            return json.loads(self.dataset_json.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.dataset_json} ({error}); export the bundle again") from error

    def _ending(self) -> str:
        return self._read_dataset_json()["file_ending"]


def predict_and_evaluate(evaluator: Any, evaluation: Evaluation) -> None:
    """Run the inference, then the evaluation, also if some cases failed; those are reported, not hidden.

    Args:
        evaluator: MONAI's. Its attribute ``failed``, if it has one, maps cases to the reason of their failure, and
            ``run`` may end with SystemExit because of them.
    """
    end = run_to_the_end(evaluator)
    evaluation.report_or_exit(getattr(evaluator, "failed", None))
    if end is not None:
        raise end


def run_to_the_end(evaluator: Any) -> SystemExit | None:
    """Run it; returns the SystemExit with which it reports failed cases, for others have to follow first."""
    try:
        evaluator.run()
    except SystemExit as end:
        return end
    return None


def _files(folder: Path, ending: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        case = without_ending(file, (*ENDINGS, ending))
        if case is None or file.name.startswith("."):
            continue
        if case in files:
            raise InputError(f"case {case} in {folder} is there twice: {files[case].name}, {file.name}; remove one")
        files[case] = file
    return files


def _measure(
    case: str, prediction_file: Path | None, reference_file: Path, labels: Labels, dataset_json: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Metrics, and the unit of the distances."""
    if prediction_file is None:
        raise InputError(f"no prediction of {case}")
    prediction, reference = read_pair(prediction_file, reference_file, labels, dataset_json)
    scores = case_metrics(prediction.array, reference.array, labels.classes, reference.spacing, labels.ignore)
    return scores, reference.unit


def _reasons(failures: Mapping[str, str], most: int = 5) -> str:
    shown: Iterable[str] = (f"{case}: {reason}" for case, reason in list(failures.items())[:most])
    return "; ".join(shown) + (f"; and {len(failures) - most} more" if len(failures) > most else "")
