"""``alhvr demo``: from scans to a report on an embedded data set, with the real commands.

Every step is a command of nnU-Net, MONAI or this package in its own process. A step that is done already, with the same
command, settings and package version, is not repeated.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
import time
from pathlib import Path

from alhvr_trainer import __version__
from alhvr_trainer.commands.link import check_nnunet_finds_us
from alhvr_trainer.config.files import read_object, write_json
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.demo.steps import CONFIGURATION, STAMPS, Layout, Step, plan_steps
from alhvr_trainer.processes import interrupted_by, last_line, run_logged
from alhvr_trainer.resources import plans_folder


def demo(
    output: str = "demo_output",
    labeled: int = 5,
    unlabeled: int = 30,
    test: int = 20,
    seed: int = 0,
    plans_file: str = "demo",
    quick: bool = False,
    fresh: bool = False,
) -> Path:
    """Run every step from scans to a deployed model on an embedded data set, and write a report with pictures.

    Generates cardiac phantoms (few labeled, more unlabeled, and test cases), plans and preprocesses them, trains
    nnU-Net on the labeled cases and ALHVRTrainer on all, predicts, evaluates, exports a MONAI bundle and runs it. It
    uses the CPU and its own folders below ``output``, so your nnU-Net is not touched. Finished steps are not repeated.

    Args:
        output: folder for everything that the demo writes.
        labeled: labeled cases; the last one is for validation.
        unlabeled: cases without labels.
        test: test cases.
        seed: of the data set.
        plans_file: a ready plan (``plans/*.json``) or a file: network, batch size, length of training.
        quick: train for a tenth of the time, to see that everything runs; the segmentations are poor.
        fresh: repeat all steps.

    Returns:
        The report, ``report.html``.

    Raises:
        InputError: a command failed (its log is named), or an argument makes no sense.

    Example:
        alhvr demo --output demo_output
    """
    cases = {"labeled": labeled, "unlabeled": unlabeled, "test": test, "seed": seed}
    _check_cases(cases)
    plans, plans_name = _ready_plan(plans_file)
    check_nnunet_finds_us()
    layout = Layout(Path(output).resolve(), plans_name)
    _claim(layout.output)
    if quick:
        plans = _shortened(plans, layout.output)
    run_steps(plan_steps(layout, plans, cases), layout, _settings(plans), fresh)
    print((layout.output / "summary.txt").read_text(encoding="utf-8"))
    print(f"report with pictures: {layout.report}")
    return layout.report


def _check_cases(cases: dict[str, int]) -> None:
    least = {"labeled": 2, "unlabeled": 1, "test": 1, "seed": 0}
    for name, number in cases.items():
        if not isinstance(number, int) or number < least[name]:
            raise InputError(f"{name} is {number!r}; it must be a whole number of at least {least[name]}")


def _claim(output: Path) -> None:
    """Make the folder; refuse one with other files in it, because steps delete results of earlier runs."""
    if output.exists() and not (output / STAMPS).is_dir():
        if not output.is_dir():
            raise InputError(f"output {output} is a file; name a folder")
        if any(output.iterdir()):
            raise InputError(f"output {output} holds files that are not the demo's; name a new folder")
    (output / STAMPS).mkdir(parents=True, exist_ok=True)


def _ready_plan(name_or_file: str) -> tuple[Path, str]:
    """File of a ready plan, and the name that it gives to the plans."""
    candidates = (Path(name_or_file), plans_folder() / f"{name_or_file}.json")
    file = next((path.resolve() for path in candidates if path.is_file()), None)
    if file is None:
        raise InputError(f"no plans file {name_or_file}; the demo's own is called demo")
    content = read_object(file)
    if CONFIGURATION in (content.get("configurations") or ()) and "plans_name" in content:
        return file, content["plans_name"]
    raise InputError(f'{file} is not a ready plan with "plans_name" and a configuration {CONFIGURATION}')


def _shortened(plans: Path, output: Path) -> Path:
    """The plan with a tenth of the epochs, two at least, as a file in the output folder."""
    content = read_object(plans)
    settings = content["configurations"][CONFIGURATION].setdefault(SETTINGS_KEY, {})
    settings["num_epochs"] = max(2, settings.get("num_epochs", 1000) // 10)
    file = output / "quick_plans.json"
    write_json(content, file)
    return file


def run_steps(steps: list[Step], layout: Layout, settings: str, fresh: bool = False) -> None:
    """Run the steps that are not done yet, in order; each writes ``logs/<number>_<name>.log``.

    Args:
        steps: all of them.
        layout: where everything is.
        settings: digest of what all steps depend on.
        fresh: repeat all steps.

    Raises:
        InputError: a command failed.
    """
    keys = _keys(steps, settings)
    names = [f"{number:02d}_{step.name}" for number, step in enumerate(steps, 1)]
    stamps = [layout.output / STAMPS / f"{name}.json" for name in names]
    done = [not fresh and _done(*each) for each in zip(steps, stamps, keys, strict=True)]
    first = done.index(False) if False in done else len(steps)
    for stamp in stamps[first:]:
        stamp.unlink(missing_ok=True)
    minutes = sum(step.seconds for step in steps[first:]) / 60
    already = f" ({first} of {len(steps)} steps are done already)" if first else ""
    print(f"demo in {layout.output}: about {minutes:.0f} minutes on two cores{already}", flush=True)
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):
        for number in range(first, len(steps)):
            step, log = steps[number], layout.output / "logs" / f"{names[number]}.log"
            title = f"step {number + 1} of {len(steps)}: {step.title}"
            print(f"{title}, about {step.seconds} s", flush=True)
            seconds = _run(step, log, layout.environment())
            print(f"{title}, done in {seconds:.0f} s", flush=True)
            record = {"key": keys[number], "title": step.title, "command": step.command, "seconds": round(seconds, 1)}
            write_json(record, stamps[number])


def _run(step: Step, log: Path, environment: dict[str, str]) -> float:
    """Run one command; its seconds."""
    for path in step.stale:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    start = time.monotonic()
    problem = run_logged(step.command, log, environment, step.meanwhile)
    if problem is None and step.meanwhile:
        step.meanwhile()
    if problem is not None or not step.result.exists():
        raise InputError(f"step {step.title!r} failed: {problem or last_line(log)} (full output: {log})")
    return time.monotonic() - start


def _keys(steps: list[Step], settings: str) -> list[str]:
    """For each step a digest of everything that its result depends on, the steps before it included."""
    keys = [settings]
    for step in steps:
        keys.append(_digest(keys[-1], *step.command))
    return keys[1:]


def _settings(plans: Path) -> str:
    return _digest(__version__, sys.version, plans.read_text(encoding="utf-8"))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _done(step: Step, stamp: Path, key: str) -> bool:
    return stamp.is_file() and read_object(stamp).get("key") == key and step.result.exists()
