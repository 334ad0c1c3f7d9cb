"""What to type next, from what the user typed and what the command returned. Capitals are the user's to fill in."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.names import PLANS_NAME, TRAINER_NAME


def next_step(name: str, signature: inspect.Signature, values: dict[str, Any], result: Any) -> str | None:
    """The command line that follows on a command which succeeded; None where nothing does.

    Args:
        name: of the command.
        signature: of its function.
        values: what it was called with.
        result: what it returned.

    Example:
        >>> next_step("train", inspect.signature(train), {"dataset": 27, "configuration": "2d"}, [])
        'alhvr predict -d 27 -c 2d -f 0 -i IN -o OUT'
    """
    if os.environ.get("RANK", "0") != "0":  # of the processes of one torchrun, one speaks
        return None
    bound = signature.bind_partial(**values)
    bound.apply_defaults()
    call = bound.arguments
    match name:
        case "link":
            return "alhvr plan_and_preprocess -d DATASET"
        case "convert":
            folder = Path(result)
            elsewhere = () if call["output"] is None else ("env", f"nnUNet_raw={folder.parent.resolve()}")
            return _line(*elsewhere, "alhvr", "plan_and_preprocess", "-d", int(folder.name[7:10]))
        case "make_split" if not call["output"]:
            return _line("alhvr", "plan_and_preprocess", "-d", call["dataset"])
        case "plan_and_preprocess":
            return _after_planning(call, Path(result))
        case "train" | "predict_next_stage":
            device = () if call["device"] == "cuda" else ("--device", call["device"])
            if result:
                return _line("alhvr", "train", *_model({**call, "configuration": result[0]}), *device)
            return _line("alhvr", "predict", *_model(call), "-i", "IN", "-o", "OUT", *device)
        case "predict":
            out = Path(call["output"])
            words = ("--predictions", out, "--references", "LABELS", "--dataset_json", out / "dataset.json")
            return _line("alhvr", "evaluate", *words)
        case "suggest":
            return _line("alhvr", "move_labeled", "-d", call["dataset"], "FINISHED_LABELS")
        case "move_labeled" if not call["dry_run"]:
            if call["new_fingerprint"]:
                return _line("alhvr", "plan_and_preprocess", "-d", call["dataset"], "--clean")
            fold = () if call["fold"] is None else ("-f", _folds(call)[0])
            return _line("alhvr", "train", "-d", call["dataset"], "-c", "CONFIGURATION", *fold)
        case "evaluate" if call["output"] is not None:
            metrics = Path(call["output"], "metrics.json")
            return f"alhvr export_bundle -d DATASET -c CONFIGURATION -o BUNDLE {_line('--evaluation', metrics)}"
        case "export_bundle":
            bundle = Path(result)
            inside = "#" in str(bundle)  # MONAI finds no config file there, unless from within
            config = Path("configs", "inference.json") if inside else bundle / "configs" / "inference.json"
            options = ("--config_file", config, "--dataset_dir", "IN", "--output_dir", "OUT")
            run = _line("python", "-m", "monai.bundle", "run", "inference", *options)
            return f"{_line('cd', bundle)} && {run}" if inside else run
        case "export_nnunet":
            return _line("nnUNetv2_install_pretrained_model_from_zip", result)
    return None


def _line(*words: object) -> str:
    return shlex.join(map(str, words))


def _folds(call: dict[str, Any]) -> Sequence[object]:
    return call["fold"] if isinstance(call["fold"], (tuple, list)) else (call["fold"],)


def _model(call: dict[str, Any]) -> list[object]:
    """The flags that name a model; those that are defaults are left out."""
    words = ["-d", call["dataset"], "-c", call["configuration"], "-f", ",".join(map(str, _folds(call)))]
    for flag, key, default in (("-p", "plans", PLANS_NAME), ("-t", "trainer", TRAINER_NAME)):
        words += [flag, call[key]] if call[key] not in (None, default) else []
    return words


def _after_planning(call: dict[str, Any], plans: Path) -> str:
    there = list(read_object(plans)["configurations"])
    wanted = call["configurations"] or there
    wanted = [name.strip() for name in (wanted.split(",") if isinstance(wanted, str) else wanted)]
    configuration = next(name for name in (*wanted, *there) if name in there)
    if call["no_pp"]:
        return _line("nnUNetv2_preprocess", "-d", call["dataset"], "-plans_name", plans.stem, "-c", configuration)
    trained = {**call, "configuration": configuration, "fold": 0, "plans": plans.stem, "trainer": None}
    return _line("alhvr", "train", *_model(trained))
