"""Time and memory of predicting: nnUNetv2_predict, and the exported bundle's two ways, on the same cases.

Whole processes, as users start them, with their default options, and nnU-Net once more with as few worker processes as
it can do with, which suits machines of few cores; they take turns, so that drifts of the machine hit all alike. Each
runs on one case and on all: the difference by the number of further cases is the time of a case, what remains of the
run on one case is the start.

    alhvr export_nnunet -d 4 -c 2d -f 0 -p PLANS -o model.zip && nnUNetv2_install_pretrained_model_from_zip model.zip
    alhvr export_bundle -d 4 -c 2d -f 0 -p PLANS -o bundle
    python benchmarks/inference.py --bundle bundle --model_folder RESULTS/DATASET/nnUNetTrainer__PLANS__2d
        --images IMAGES --work_folder ~/benchmark --output benchmarks/results/inference.json --name "2d, Hippocampus"

The model folder is that of a stock trainer: nnUNetv2_predict should not have to import this package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import fire
import torch
from step_cost import versions

POLL = 0.5  # seconds between two looks at the memory
PAGE_KIB = 1024


def commands(bundle: Path, model_folder: Path, device: str) -> dict[str, list[str]]:
    """What is compared; the folders of images and of results are appended."""
    run = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(bundle), "--device", device]
    predict = str(Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder")
    nnunet = [predict, "-m", str(model_folder), "-f", "0", "-device", device]
    return {
        "nnUNetv2_predict": nnunet,
        "nnUNetv2_predict -npp 1 -nps 1": [*nnunet, "-npp", "1", "-nps", "1"],
        "bundle, inference.json": [*run, "--config_file", str(bundle / "configs" / "inference.json")],
        "bundle, inference_native.json": [*run, "--config_file", str(bundle / "configs" / "inference_native.json")],
    }


def measure(command: list[str], images: Path, output: Path, memory: bool = False) -> float:
    """Seconds of one run, or its peak memory in MiB (proportional share of all its processes): to look slows it."""
    shutil.rmtree(output, ignore_errors=True)
    keys = ("--dataset_dir", "--output_dir") if "monai.bundle" in command else ("-i", "-o")
    whole = [*command, keys[0], str(images), keys[1], str(output)]
    started, peak = time.perf_counter(), 0
    with open(output.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(whole, stdout=log, stderr=subprocess.STDOUT)
        while memory and process.poll() is None:
            peak = max(peak, sum(map(_share_kib, _tree(process.pid))))
            time.sleep(POLL)
        process.wait()
    if process.returncode:
        raise SystemExit(f"{' '.join(whole)} failed, see {output.with_suffix('.log')}")
    return round(peak / PAGE_KIB) if memory else round(time.perf_counter() - started, 2)


def _tree(pid: int) -> list[int]:
    try:
        threads = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in threads for child in (task / "children").read_text().split()]
    except OSError:  # gone meanwhile
        return []
    return [pid, *(below for child in children for below in _tree(child))]


def _share_kib(pid: int) -> int:
    """Memory of a process; what it shares with others counts by its share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def first_case(images: Path, folder: Path) -> Path:
    """A folder with the files of the first case alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = sorted(images.glob("*.nii.gz"))
    case = files[0].name[: -len("_0000.nii.gz")]
    for file in images.glob(f"{case}_????.nii.gz"):
        (folder / file.name).symlink_to(file.resolve())
    return folder


def inference(
    bundle: str, model_folder: str, images: str, work_folder: str, output: str, name: str, rounds: int = 3
) -> None:
    """Measure and add the result under ``name`` to the JSON file ``output``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = Path(work_folder)
    one = first_case(Path(images), work / "one_case")
    number = len({file.name[: -len("_0000.nii.gz")] for file in Path(images).glob("*.nii.gz")})
    ways = commands(Path(bundle), Path(model_folder), device)
    runs: dict[str, dict[str, list[float]]] = {way: {"one": [], "all": []} for way in ways}
    for _ in range(rounds):
        for way, command in ways.items():
            runs[way]["one"].append(measure(command, one, work / "found"))
            runs[way]["all"].append(measure(command, Path(images), work / "found"))
            print(way, runs[way], flush=True)
    result: dict[str, Any] = {"cases": number, "rounds": rounds}
    result["ways"] = {way: summary(seconds, number) for way, seconds in runs.items()}
    floor = result["ways"]["nnUNetv2_predict"]
    for way, of_way in result["ways"].items():
        of_way["ratio_to_nnunet"] = {key: round(of_way[key] / floor[key], 3) for key in ("seconds_all", "per_case")}
        of_way["peak_mib"] = measure(ways[way], Path(images), work / "found", memory=True)
    result |= {"command": f"python benchmarks/inference.py --name {name!r} --rounds {rounds} …", "seconds": runs}
    result |= {"environment": versions(torch.device(device)), "cpus": os.cpu_count()}
    target = Path(output)
    content: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {}
    content[name] = result
    target.write_text(json.dumps(content, indent=2) + "\n")


def summary(seconds: dict[str, list[float]], number: int) -> dict[str, Any]:
    """Medians over the rounds."""
    one, all_cases = (median(seconds[key]) for key in ("one", "all"))
    per_case = (all_cases - one) / (number - 1)
    return {
        "seconds_all": round(all_cases, 2),
        "start": round(one - per_case, 2),
        "per_case": round(per_case, 4),
    }


if __name__ == "__main__":
    fire.Fire(inference)
