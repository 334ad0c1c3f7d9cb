"""Where the voxels of each class lie while ALHVR trains: in which region, what the teacher says there, who pulls where.

The training is the suite's. It never sees the cases that are measured: after every ``every`` steps, both networks run
on the same patches of validation cases, whose labels then sort the voxels into classes. Measuring draws
feature perturbations, so that later steps are not those of an undisturbed training.

    python benchmarks/regions_by_class.py --suite acdc-cpu --fold 1 --output regions_by_class.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fire
import torch
from method_cost import Training
from step_cost import versions
from torch import Tensor

from alhvr_trainer.experiments.benchmark.suites import load_suite
from alhvr_trainer.losses import alhvr_terms
from alhvr_trainer.losses.teaching import competing_teacher, masked_entropy
from alhvr_trainer.trainers.samples import full_resolution

REGIONS = ("omega1", "omega2a", "omega2b", "omega3")


def measure(trainer: Any, batches: Iterable[dict[str, Any]], classes: dict[str, int]) -> dict[str, Any]:
    """What the regions hold of each class, over all batches.

    Args:
        trainer: an ALHVRTrainer without regions among its labels.
        batches: of the validation loader.
        classes: names with their labels.

    Returns:
        For each class: ``share`` of the voxels; ``omega1`` to ``omega3``, shares of its voxels; ``teacher``, shares of
        its voxels in Omega3 by the class that the teacher gives them; ``pull_KIND_NETWORK``, minus the summed gradient
        of a DTCT term on the logit of the true class: above 0 toward it, below 0 away; Dice of both networks.
    """
    counts = {name: dict.fromkeys(("voxels", *REGIONS), 0.0) for name in classes}
    teacher = {name: dict.fromkeys(classes, 0.0) for name in classes}
    kinds = [f"{kind}_{network}" for kind in ("dtct", "entropy") for network in "ab"]
    pulls = {name: dict.fromkeys(kinds, 0.0) for name in classes}
    overlap = {name: {n: [0.0, 0.0] for n in "ab"} for name in classes}
    for batch in batches:
        labels = full_resolution(batch["target"])[:, 0].long()
        a, b, regions, gradients = passes_and_gradients(trainer, batch["data"].to(trainer.device))
        given = competing_teacher(a.softmax(1), b.softmax(1), trainer.settings.temperature).argmax(1)
        for name, label in classes.items():
            true = labels == label
            counts[name]["voxels"] += int(true.sum())
            for region in REGIONS:
                counts[name][region] += int((true & getattr(regions, region)).sum())
            for other, value in classes.items():
                teacher[name][other] += int((true & regions.omega3 & (given == value)).sum())
            for kind, gradient in gradients.items():
                pulls[name][kind] -= float(gradient[:, label][true].sum())
            for network, logits in (("a", a), ("b", b)):
                found = logits.argmax(1) == label
                overlap[name][network][0] += 2 * int((found & true).sum())
                overlap[name][network][1] += int(found.sum()) + int(true.sum())
    everything = sum(each["voxels"] for each in counts.values())
    return {
        name: {
            "share": rounded(counts[name]["voxels"], everything),
            **{region: rounded(counts[name][region], counts[name]["voxels"]) for region in REGIONS},
            "teacher": {other: rounded(n, counts[name]["omega3"]) for other, n in teacher[name].items()},
            **{f"pull_{kind}": float(f"{pull:.3g}") for kind, pull in pulls[name].items()},
            **{f"dice_{network}": rounded(*parts) for network, parts in overlap[name].items()},
        }
        for name in classes
    }


def passes_and_gradients(trainer: Any, data: Tensor) -> tuple[Tensor, Tensor, Any, dict[str, Tensor]]:
    """Clean logits of both networks, the regions, and each network's gradients on its logits, of both passes together.

    Args:
        trainer: an ALHVRTrainer.
        data: (B, channels, *S).
    """
    settings = trainer.settings
    with torch.no_grad():
        runs = {name: run(data, 0, trainer.perturbations[name])[1] for name, run in trainer.passes.items()}
    leaves = {
        name: passes._replace(
            logits=passes.logits.requires_grad_(), perturbed_logits=passes.perturbed_logits.requires_grad_()
        )
        for name, passes in runs.items()
    }
    terms = alhvr_terms(
        *leaves["a"],
        *leaves["b"],
        threshold_proportion=trainer.threshold_proportion,
        temperature=settings.temperature,
        prototype_scale=settings.prototype_scale,
        detach_teacher=settings.detach_teacher,
        dtct_regions=settings.dtct_regions,
        cgcpcl_regions=(),
    )
    weight = terms.omega3.float()
    gradients = {}
    for name, passes in leaves.items():
        logits = [passes.logits, passes.perturbed_logits]
        entropy: Any = sum(masked_entropy(z.softmax(1), weight, weight.numel()) for z in logits)
        for kind, term in (("dtct", getattr(terms, f"dtct_{name}")), ("entropy", entropy)):
            gradients[f"{kind}_{name}"] = sum(torch.autograd.grad(term, logits, retain_graph=True))
    return leaves["a"].logits.detach(), leaves["b"].logits.detach(), terms, gradients


def rounded(part: float, whole: float) -> float | None:
    """A share with four digits; None of nothing."""
    return round(part / whole, 4) if whole else None


def main(
    suite: str = "acdc-cpu",
    method: str = "ALHVR",
    fold: int = 1,
    steps: int = 1000,
    every: int = 100,
    batches: int = 10,
    settings: dict[str, Any] | None = None,
    output: str | None = None,
) -> None:
    """Train for the first steps of a suite's method and write a JSON of the regions.

    Args:
        suite: whose comparison to measure; ``alhvr benchmark`` must have planned it.
        method: a row of it of ALHVRTrainer.
        fold: of its split.
        steps: of training; the schedules are those of the whole training.
        every: so many steps, measure.
        batches: of validation patches.
        settings: that differ from the row's.
        output: JSON file.
    """
    chosen = load_suite(suite)
    row = next(each for each in chosen.methods if each.name == method)
    row = row.model_copy(update={"settings": {**row.settings, **(settings or {})}})
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as results:
        os.environ.update(nnUNet_n_proc_DA="0", OMP_NUM_THREADS=threads, nnUNet_results=results)
        trainer = Training(chosen, row, fold, torch.device("cpu")).trainer
        patches = [next(trainer.dataloader_val) for _ in range(batches)]
        classes = {name: label for name, label in trainer.dataset_json["labels"].items() if name != "ignore"}
        found: dict[int, Any] = {}
        for step in range(1, steps + 1):
            trainer.train_step(next(trainer.dataloader_train))
            if step % trainer.num_iterations_per_epoch == 0:
                trainer.lr_scheduler.step(step // trainer.num_iterations_per_epoch)
                trainer._schedulers["b"].step(step // trainer.num_iterations_per_epoch)
            if step % every == 0:
                found[step] = measure(trainer, patches, classes)
                print(step, json.dumps(found[step]), flush=True)
        trainer.on_train_end()
    if output:
        how = {"command": " ".join(sys.argv), **versions(torch.device("cpu")), "suite": suite, "method": method}
        how |= {"fold": fold, "seed": 0, "settings": row.settings, "batches": batches}
        Path(output).write_text(json.dumps({**how, "steps": found}, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
