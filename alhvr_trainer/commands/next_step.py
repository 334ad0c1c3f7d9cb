"""What to type next: one function per command, from what the user typed and what the command returned.

Words in capitals are the user's to fill in.
"""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.names import PLANS_NAME, TRAINER_NAME

Call = dict[str, Any]
"""Arguments of a command by name, defaults included, and what it returned under ``RESULT``."""
RESULT = "return"


def next_step(name: str, signature: inspect.Signature, values: dict[str, Any], result: Any) -> str | None:
    """The command line that follows on a command which succeeded; None where nothing does.

    Args:
        name: of the command.
        signature: of its function.
        values: what it was called with.
        result: what it returned.

    Example:
        >>> next_step("train", inspect.signature(train), {"dataset": 27, "configuration": "2d"}, None)
        'alhvr predict -d 27 -c 2d -f 0 -i IN -o OUT'
    """
    step = _STEPS.get(name)
    if step is None or os.environ.get("RANK", "0") != "0":  # of the processes of one torchrun, one speaks
        return None
    bound = signature.bind_partial(**values)
    bound.apply_defaults()
    return step({**bound.arguments, RESULT: result})


def _line(*words: object) -> str:
    return shlex.join(map(str, words))


def _dataset(call: Call) -> tuple[object, ...]:
    return ("-d", call["dataset"])


def _model(call: Call) -> tuple[object, ...]:
    """The flags that name a model; those that are defaults are left out."""
    folds = call["fold"] if isinstance(call["fold"], (tuple, list)) else (call["fold"],)
    words = (*_dataset(call), "-c", call["configuration"], "-f", ",".join(map(str, folds)))
    for flag, key, default in (("-p", "plans", PLANS_NAME), ("-t", "trainer", TRAINER_NAME)):
        words += (flag, call[key]) if call[key] not in (None, default) else ()
    return words


def _device(call: Call) -> tuple[object, ...]:
    return () if call["device"] == "cuda" else ("--device", call["device"])


def _after_link(call: Call) -> str:
    return _line("alhvr", "plan_and_preprocess", "-d", "DATASET")


def _after_convert(call: Call) -> str:
    folder = Path(call[RESULT])
    elsewhere = () if call["output"] is None else ("env", f"nnUNet_raw={folder.parent.resolve()}")
    return _line(*elsewhere, "alhvr", "plan_and_preprocess", "-d", int(folder.name[7:10]))


def _after_make_split(call: Call) -> str | None:
    return None if call["output"] else _line("alhvr", "plan_and_preprocess", *_dataset(call))


def _after_plan(call: Call) -> str:
    plans = Path(call[RESULT])
    there = list(read_object(plans)["configurations"])
    wanted = call["configurations"] or there
    wanted = [name.strip() for name in (wanted.split(",") if isinstance(wanted, str) else wanted)]
    configuration = next(name for name in (*wanted, *there) if name in there)
    if call["no_pp"]:
        return _line("nnUNetv2_preprocess", *_dataset(call), "-plans_name", plans.stem, "-c", configuration)
    trained = {**call, "configuration": configuration, "fold": 0, "plans": plans.stem, "trainer": None}
    return _line("alhvr", "train", *_model(trained))


def _after_train(call: Call) -> str:
    for stage in call[RESULT]:
        return _line("alhvr", "train", *_model({**call, "configuration": stage}), *_device(call))
    return _line("alhvr", "predict", *_model(call), "-i", "IN", "-o", "OUT", *_device(call))


def _after_predict(call: Call) -> str:
    out = Path(call["output"])
    words = ("--predictions", out, "--references", "LABELS", "--dataset_json", out / "dataset.json")
    return _line("alhvr", "evaluate", *words)


def _after_evaluate(call: Call) -> str | None:
    if call["output"] is None:
        return None
    words = (
        "-d",
        "DATASET",
        "-c",
        "CONFIGURATION",
        "-o",
        "BUNDLE",
        "--evaluation",
        Path(call["output"], "metrics.json"),
    )
    return _line("alhvr", "export_bundle", *words)


def _after_export_bundle(call: Call) -> str:
    bundle = Path(call[RESULT])
    inside = "#" in str(bundle)  # MONAI finds no config file there, unless from within
    config = Path("configs", "inference.json") if inside else bundle / "configs" / "inference.json"
    words = ("--config_file", config, "--dataset_dir", "IN", "--output_dir", "OUT")
    run = _line("python", "-m", "monai.bundle", "run", "inference", *words)
    return f"{_line('cd', bundle)} && {run}" if inside else run


def _after_export_nnunet(call: Call) -> str:
    return _line("nnUNetv2_install_pretrained_model_from_zip", call[RESULT])


_STEPS: dict[str, Callable[[Call], str | None]] = {
    "link": _after_link,
    "convert": _after_convert,
    "make_split": _after_make_split,
    "plan_and_preprocess": _after_plan,
    "train": _after_train,
    "predict_next_stage": _after_train,
    "predict": _after_predict,
    "evaluate": _after_evaluate,
    "export_bundle": _after_export_bundle,
    "export_nnunet": _after_export_nnunet,
}
