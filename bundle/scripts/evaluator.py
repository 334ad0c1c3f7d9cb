"""Running the cases: one that fails does not stop the others, and is named at the end."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from tqdm import tqdm

from .input_error import reason

ERROR = "error"
CASE = "case"


class CaseDataset(Dataset):
    """MONAI's dataset; an item whose preprocessing fails is ``{"case": name, "error": one line}``."""

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            return {CASE: self.data[index].get(CASE, f"number {index}"), ERROR: reason(error)}


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator over a :class:`CaseDataset`, batches of one case.

    ``failed`` holds case -> reason for each case that could not be read, predicted or written.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.failed: dict[str, str] = {}

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        case = batchdata[CASE][0] if CASE in batchdata else f"number {engine.state.iteration}"
        if ERROR in batchdata:
            self._fail(case, batchdata[ERROR][0])
            return {}
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            self._fail(case, reason(error))
            return {}

    def _fail(self, case: str, why: str) -> None:
        self.failed[case] = why
        tqdm.write(f"bundle: {case} failed: {why}")

    def run(self) -> None:
        """Predict every case.

        Raises:
            SystemExit: there is none; the message says why.
        """
        self.failed.clear()
        problem = getattr(self.data_loader.dataset.data, "problem", "")
        if problem:
            raise SystemExit(f"bundle: {problem}")
        super().run()

    def exit_if_failed(self) -> None:
        """End the program with status 1 and one line for each case that failed, if any did."""
        if self.failed:
            lines = [f"  {case}: {why}" for case, why in self.failed.items()]
            total = self.state.epoch_length
            raise SystemExit("\n".join([f"bundle: {len(lines)} of {total} cases failed, the others are done:", *lines]))


class CaseProgress:
    """Handler: a progress bar over the cases that names the one being predicted."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_STARTED, self._show)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self._bar.update())
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._bar.close())

    def _open(self, engine: Engine) -> None:
        self._bar = tqdm(total=engine.state.epoch_length, unit=CASE, desc="predicting")

    def _show(self, engine: Engine) -> None:
        name = engine.state.batch.get(CASE) if isinstance(engine.state.batch, dict) else None
        self._bar.set_postfix_str(name[0] if name else "")
