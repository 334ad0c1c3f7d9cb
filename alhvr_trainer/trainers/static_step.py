"""A training step in fixed memory: what a CUDA graph captures once and replays.

Launching the hundreds of kernels of a step takes longer than running them where patches are small. A CUDA graph
launches all at once, if nothing in the step depends on the host: inputs stay where they are, numbers that change from
step to step are read from the device, and nothing is looked at (``tests/trainers/test_no_waiting.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.trainers.samples import Samples

Step = Callable[[Samples], dict[str, Tensor]]
WARM_UP = 3
"""Steps that run as they are, on the stream of the capture, before it: what is built at first use must be there."""


class StaticStep:
    """A step whose inputs, outputs and numbers stay where they are.

    Args:
        step: everything from the networks to the moved averages; gives scalars.
        optimizers: their learning rates are read from the device.
        generators: that the step draws from, besides torch's own.
        device: CUDA: the step is captured; another: it runs anew each time, on the same memory (for tests).
    """

    def __init__(
        self, step: Step, optimizers: Iterable[Optimizer], generators: list[torch.Generator], device: torch.device
    ) -> None:
        self._step, self._device, self._generators = step, device, generators
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._rates = [torch.zeros((), device=device) for _ in self._groups]
        self._numbers: dict[str, tuple[Callable[[], float], Tensor]] = {}
        self._samples: Samples | None = None
        self._graph: Any = None
        self._outputs: dict[str, Tensor] = {}
        self._done = 0
        if device.type == "cuda":
            for optimizer in optimizers:
                _fuse(optimizer)

    def number(self, name: str, current: Callable[[], float]) -> Tensor:
        """A number that changes from step to step, as the step reads it: a scalar on the device."""
        if name not in self._numbers:
            self._numbers[name] = (current, torch.full((), float(current()), device=self._device))
        return self._numbers[name][1]

    def __call__(self, samples: Samples) -> dict[str, Tensor]:
        """Run the step on a batch of the same shapes as the first; scalars, which the next step does not overwrite."""
        self._fill(samples)
        if self._graph is not None:
            self._graph.replay()
        elif self._device.type != "cuda":
            self._outputs = self._with_rates()
        elif self._done < WARM_UP:
            self._outputs = self._on_a_stream_of_its_own()
        else:
            self._capture()
        self._done += 1
        return {name: value.clone() for name, value in self._outputs.items()}

    def _fill(self, samples: Samples) -> None:
        if self._samples is None:
            self._samples = replace(samples)
        else:
            for old, new in zip(_tensors(self._samples), _tensors(samples), strict=True):
                old.copy_(new, non_blocking=True)
        for group, rate in zip(self._groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        for current, value in self._numbers.values():
            value.fill_(current())

    def _with_rates(self) -> dict[str, Tensor]:
        """The step, with learning rates on the device; the schedulers set plain numbers."""
        plain = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            assert self._samples is not None
            return self._step(self._samples)
        finally:
            for group, number in zip(self._groups, plain, strict=True):
                group["lr"] = number

    def _on_a_stream_of_its_own(self) -> dict[str, Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._with_rates()
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        # thread_local: nnU-Net's threads pin validation batches meanwhile
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self._with_rates()
        except RuntimeError as error:  # a method of the user's own, for example, that looks at a number
            raise InputError(
                f'the step cannot be a CUDA graph ({one_line(error)}): set "cuda_graph" to false in the plans'
            ) from error
        self._graph = graph
        graph.replay()  # capturing runs nothing


def static_step_of(trainer: Any) -> StaticStep | None:
    """The step of a semi-supervised training as a CUDA graph; None if that cannot be: the log says why."""
    against = reasons_against(trainer)
    how = f"no CUDA graph: {', '.join(against)}" if against else "each step is one CUDA graph"
    trainer.print_to_log_file(f"ALHVR: {how}")

    def step(samples: Samples) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        trainer.optimize(samples, values.update)
        return values

    return None if against else StaticStep(step, trainer.optimizers.values(), trainer.generators(), trainer.device)


def reasons_against(trainer: Any) -> list[str]:
    """Why the step of a semi-supervised training cannot be captured; empty: it can."""
    reasons = {
        f"the device is {trainer.device.type}": trainer.device.type != "cuda",
        "several ranks exchange messages within a step": trainer.is_ddp,
        "torch.compile is on (nnUNet_compile)": trainer._do_i_compile(),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _tensors(samples: Samples) -> list[Tensor]:
    values = [getattr(samples, field.name) for field in fields(samples)]
    return [x for value in values for x in (value if isinstance(value, list) else [value]) if isinstance(x, Tensor)]


def _fuse(optimizer: Optimizer) -> None:
    """torch's fused SGD takes learning rate, scale and overflow from the device; the others ask the host for them."""
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
