"""Kill a training at random moments, also while it writes checkpoints, and continue it: is a checkpoint ever lost?

A tiny training on generated phantoms writes both checkpoints after every epoch. Each round starts it (with ``--c`` from
the second on), kills it with SIGKILL, and reads every checkpoint that is there. Even rounds kill at a random moment,
odd ones wait until a checkpoint is being written and kill within the next milliseconds.

    python benchmarks/kill_training.py --rounds 50 --output benchmarks/results/kill_training.json
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fire
import torch
from step_cost import versions

SETTINGS = {
    "unlabeled_batch_size": 2,
    "seed": 0,
    "num_epochs": 100_000,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
}
CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth")
STARTED = "epoch "
UNFINISHED = ".*.part"


def prepare(work: Path) -> None:
    from alhvr_trainer.experiments.demo.phantom import write_dataset
    from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
    from alhvr_trainer.resources import plans_folder

    write_dataset(work / "raw", labeled=3, unlabeled=3, test=0, shape=(3, 32, 32))
    ready = json.loads((plans_folder() / "demo.json").read_text())
    configuration = ready["configurations"]["2d"]
    configuration.update(batch_size=4, patch_size=[32, 32], alhvr=SETTINGS)
    (work / "plans.json").write_text(json.dumps(ready))
    plan_and_preprocess(901, "2d", plans_file=str(work / "plans.json"), num_processes=1)


def train(resume: bool) -> None:
    """The child: nnU-Net's own training function, saving after every epoch."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    torch.set_num_threads(1)
    trainer = get_trainer_from_args(
        "901", "2d", 0, "ALHVRTrainer", "ALHVRPlansDemo", continue_training=resume, device=torch.device("cpu")
    )
    trainer.save_every = 1
    maybe_load_checkpoint(trainer, resume, False)
    trainer.run_training()


def one_round(fold: Path, resume: bool, seconds: float, in_writing: bool) -> str | None:
    """Start the training, let it run for ``seconds`` after its first epoch, kill it; what went wrong.

    With ``in_writing`` the kill waits for the next checkpoint's temporary file.
    """
    if in_writing:
        for left_over in fold.glob(UNFINISHED):
            left_over.unlink()
    command = [sys.executable, __file__, "train", "--resume", str(resume)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        output = []
        for line in child.stdout or ():
            output.append(line)
            if STARTED in line:
                break
        else:
            return "did not start: " + "".join(output[-5:])
        time.sleep(seconds)
        while in_writing and child.poll() is None and not any(fold.glob(UNFINISHED)):
            pass
        if in_writing:
            time.sleep(seconds % 0.005)
        child.send_signal(signal.SIGKILL)
    return None


def inspect(fold: Path) -> tuple[dict[str, int], bool]:
    """Epoch of every checkpoint, -1 where it cannot be used; and whether the kill fell into the writing of one."""
    from alhvr_trainer.errors import InputError
    from alhvr_trainer.trainers.checkpoints import read_checkpoint

    epochs = {}
    for name in CHECKPOINTS:
        try:
            epochs[name] = read_checkpoint(fold / name)["current_epoch"]
        except InputError:
            epochs[name] = -1
    return epochs, any(fold.glob(UNFINISHED))


def main(rounds: int = 50, longest: float = 2.0, seed: int = 0, output: str | None = None) -> None:
    """Run the rounds and print, and write as JSON, what was found.

    Args:
        rounds: number of kills.
        longest: seconds after the first epoch; the moment of the kill is uniform between 0 and this.
        seed: of the moments.
        output: JSON file.
    """
    draw, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("raw", "preprocessed", "results"):
            (work / name).mkdir()
            os.environ[f"nnUNet_{name}"] = str(work / name)
        from alhvr_trainer.resources import ext_trainer_folder

        extra = {"nnUNet_extTrainer": str(ext_trainer_folder()), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
        os.environ.update(extra)
        prepare(work)
        fold = work / "results" / "Dataset901_Phantom" / "ALHVRTrainer__ALHVRPlansDemo__2d" / "fold_0"
        reached = 0
        for number in range(rounds):
            problem = one_round(fold, number > 0, draw.uniform(0, longest), in_writing=number % 2 == 1)
            epochs, unfinished = inspect(fold)
            found["unusable checkpoints"] += sum(epoch < 0 for epoch in epochs.values())
            found["trainings that did not continue"] += problem is not None
            found["checkpoints that fell back"] += epochs[CHECKPOINTS[0]] < reached
            found["kills while a checkpoint was written"] += unfinished
            reached = max(reached, epochs[CHECKPOINTS[0]])
            print(number, epochs, "while writing" if unfinished else "", problem or "", flush=True)
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        **versions(torch.device("cpu")),
        "rounds": rounds,
        "seed": seed,
        **found,
        "epochs reached": reached,
    }
    print(json.dumps(result, indent=2))
    if output:
        Path(output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire({"run": main, "train": train} if "train" in sys.argv[1:2] else main)
