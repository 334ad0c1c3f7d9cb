"""alhvr demo: the runner on small commands, the report's parts, and the whole way on a tiny plan."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.demo.comparison import result_in_words, same_cases
from alhvr_trainer.experiments.demo.phantom import write_volume
from alhvr_trainer.experiments.demo.run import demo, run_steps
from alhvr_trainer.experiments.demo.steps import BASELINE_NAME, Layout, Step
from alhvr_trainer.resources import plans_folder
from alhvr_trainer.trainers.alhvr import ALHVRSettings

pytestmark = pytest.mark.any_nnunet


def _step(folder: Path, name: str, code: str = "pass", **more) -> Step:
    """Appends its name to ``order.txt``, runs ``code``, then writes ``<name>.txt``."""
    command = [
        sys.executable,
        "-c",
        f"open({str(folder / 'order.txt')!r}, 'a').write({name!r}); {code}; "
        f"open({str(folder / f'{name}.txt')!r}, 'w').write('done')",
    ]
    return Step(name, f"do {name}", 1, command, folder / f"{name}.txt", **more)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path, "Plans")


def _order(folder: Path) -> str:
    return (folder / "order.txt").read_text()


def test_finished_steps_are_not_repeated(tmp_path, layout, capsys):
    steps = [_step(tmp_path, name) for name in "abc"]
    run_steps(steps, layout, "settings")
    assert _order(tmp_path) == "abc"
    assert "step 2 of 3: do b, about 1 s" in capsys.readouterr().out
    run_steps(steps, layout, "settings")
    assert _order(tmp_path) == "abc"
    assert "(3 of 3 steps are done already)" in capsys.readouterr().out

    changed = [steps[0], _step(tmp_path, "b", "x = 1"), steps[2]]
    run_steps(changed, layout, "settings")
    assert _order(tmp_path) == "abcbc"  # what comes after a changed step is repeated as well
    (tmp_path / "c.txt").unlink()
    run_steps(changed, layout, "settings")
    assert _order(tmp_path) == "abcbcc"
    run_steps(changed, layout, "other settings")
    assert _order(tmp_path) == "abcbccabc"
    run_steps(changed, layout, "other settings", fresh=True)
    assert _order(tmp_path) == "abcbccabcabc"


def test_failed_step_is_named_with_its_log_and_taken_up_again(tmp_path, layout):
    steps = [
        _step(tmp_path, "a"),
        _step(tmp_path, "b", "raise RuntimeError('no space')"),
        _step(tmp_path, "c"),
    ]
    with pytest.raises(InputError, match=r"step 'do b' failed: RuntimeError: no space \(.*logs.02_b\.log\)"):
        run_steps(steps, layout, "")
    with pytest.raises(InputError, match="'do b' failed"):
        run_steps(steps, layout, "")
    assert _order(tmp_path) == "abb"


def test_step_without_its_result_counts_as_failed(tmp_path, layout):
    step = replace(_step(tmp_path, "a"), result=tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="step 'do a' failed"):
        run_steps([step], layout, "")


def test_stale_results_go_before_a_step_and_it_is_watched(tmp_path, layout):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    seen = []
    step = _step(
        tmp_path,
        "a",
        f"import os, time; assert not os.path.exists({str(tmp_path / 'old')!r}); time.sleep(0.5)",
        stale=(tmp_path / "old", tmp_path / "never_there"),
        meanwhile=lambda: seen.append((tmp_path / "a.txt").exists()),
    )
    run_steps([step], layout, "")
    assert seen[0] is False and seen[-1] is True


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_ending_the_demo_ends_the_running_command(tmp_path):
    pid_file = tmp_path / "pid"
    waiting = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from alhvr_trainer.experiments.demo.run import run_steps; "
        "from alhvr_trainer.experiments.demo.steps import Layout, Step; "
        f"step = Step('a', 'wait', 60, [sys.executable, '-c', {waiting!r}], Path('never')); "
        f"run_steps([step], Layout(Path({str(tmp_path)!r}), 'Plans'), '')"
    )
    demo_process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        _wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
        command = int(pid_file.read_text())
        os.kill(command, 0)  # it runs
        demo_process.send_signal(signal.SIGTERM)
        assert demo_process.wait(timeout=30) != 0
        with pytest.raises(ProcessLookupError):
            os.kill(command, 0)
    finally:
        demo_process.kill()


def _wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="labeled is 1; it must be a whole number of at least 2"):
        demo(str(tmp_path / "new"), labeled=1)
    with pytest.raises(InputError, match="no plans file nonsense; the demo's own is called demo"):
        demo(str(tmp_path / "new"), plans_file="nonsense")
    with pytest.raises(InputError, match=r'acdc\.json is not a ready plan with "plans_name" and a configuration 2d'):
        (tmp_path / "acdc.json").write_text("{}")
        demo(str(tmp_path / "new"), plans_file=str(tmp_path / "acdc.json"))
    assert not (tmp_path / "new").exists()


def test_folder_of_others_is_left_alone(tmp_path):
    precious = tmp_path / "bundle" / "model.pt"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(InputError, match="holds files that are not the demo's; name a new folder"):
        demo(str(tmp_path))
    with pytest.raises(InputError, match=r"model\.pt is a file; name a folder"):
        demo(str(precious))
    assert precious.exists() and sorted(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_comparison_of_folders(tmp_path):
    from alhvr_trainer.experiments.demo.html_report import compare_folders

    label = np.zeros((2, 4, 4), np.uint8)
    for folder in ("expected", "found"):
        (tmp_path / folder).mkdir()
        for case in ("same", "other_voxel", "other_origin"):
            write_volume(label, tmp_path / folder / f"{case}.nii.gz")
    write_volume(label, tmp_path / "expected" / "missing.nii.gz")
    write_volume(label, tmp_path / "found" / "other_origin.nii.gz", origin=(0, 0, 1))
    label[0, 0, 0] = 1
    write_volume(label, tmp_path / "found" / "other_voxel.nii.gz")
    assert compare_folders(tmp_path / "expected", tmp_path / "found") == (1, 4)


def test_pictured_cases_follow_a_fixed_rule():
    from alhvr_trainer.experiments.demo.html_report import chosen_cases

    dice = {"best": 0.9, "worst": None, "third": 0.7, "second": 0.8, "fourth": 0.2}
    cases = {case: {"A": {"Dice": value}, "B": {"Dice": value}} for case, value in dice.items()}
    assert chosen_cases({"ALHVRTrainer": {"cases": cases}}, 3) == ["worst", "third", "best"]
    assert chosen_cases({"ALHVRTrainer": {"cases": cases}}, 9) == [
        "worst",
        "fourth",
        "third",
        "second",
        "best",
    ]


def _scores(**distances) -> dict:
    """By case: Dice, and a distance or None."""
    cases = {
        case: {"LV": {"Dice": dice, "Jaccard": dice, "HD95": far, "HD95_pooled": far, "ASD": far, "empty": ""}}
        for case, (dice, far) in distances.items()
    }
    return {"cases": cases}


def test_distances_compare_the_same_cases():
    scores = {BASELINE_NAME: _scores(a=(0.5, 4.0), b=(0.0, None)), TRAINER_NAME: _scores(a=(0.7, 2.0), b=(0.6, 30.0))}
    compared = same_cases(scores)
    assert [compared[trainer]["classes"]["LV"]["HD95"]["mean"] for trainer in scores] == [4.0, 2.0]
    assert [compared[trainer]["classes"]["LV"]["ASD"]["n"] for trainer in scores] == [1, 1]
    assert [compared[trainer]["classes"]["LV"]["Dice"]["mean"] for trainer in scores] == pytest.approx([0.25, 0.65])


def test_the_result_comes_with_its_worth():
    ours, theirs = (_scores(**{f"c{n}": (dice + n / 100, 1.0) for n in range(6)}) for dice in (0.6, 0.5))
    scores = {BASELINE_NAME: theirs, TRAINER_NAME: ours}
    defaults = ALHVRSettings().as_dict()
    (difference,) = result_in_words(scores, defaults | {"num_epochs": 3, "threshold_proportion": 0.8})
    assert "+0.100 on average over n = 6 test scans, higher in 6 of them; p = 0.031 (Wilcoxon" in difference
    _, changed = result_in_words(scores, defaults | {"consistency_weight": 0.3})
    assert changed == "Not ALHVR's default settings: consistency_weight 0.3 (default 0.1)."


# --- the whole way ---


@pytest.fixture(scope="module")
def tiny_demo(tmp_path_factory):
    """The demo with a network of a few hundred weights; ``--quick`` leaves six steps of sixty."""
    folder = tmp_path_factory.mktemp("demo")
    plans = json.loads((plans_folder() / "demo.json").read_text())
    configuration = plans["configurations"]["2d"]
    configuration.update(batch_size=4, patch_size=[32, 32])
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3,
        features_per_stage=[4, 8, 8],
        kernel_sizes=[[3, 3]] * 3,
        strides=[[1, 1], [2, 2], [2, 2]],
        n_conv_per_stage=[1] * 3,
        n_conv_per_stage_decoder=[1] * 2,
    )
    lengths = {"num_epochs": 20, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}
    configuration["alhvr"] = {"unlabeled_batch_size": 2, "seed": 0, **lengths}
    file = folder / "tiny.json"
    file.write_text(json.dumps(plans))
    arguments = {"labeled": 3, "unlabeled": 3, "test": 2, "plans_file": str(file)}
    command = [Path(sys.executable).parent / "alhvr", "demo", "--output", folder / "out"]
    command += [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    command.append("--quick")
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "out", command, result.stdout


@pytest.mark.slow
def test_demo_goes_the_whole_way(tiny_demo):
    output, _, said = tiny_demo
    assert "step 11 of 11: write the report, done in" in said
    assert "All 2 files of the MONAI bundle equal nnUNetv2_predict's, voxels and geometry." in said
    assert "on average over n = 2 test scans" in said
    card = (output / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
    assert "Measured by `alhvr evaluate` on predictions of 2 cases" in card
    report = (output / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', report)
    assert len(pictures) == 3
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "2 labeled scans to train on, 1 for validation, 3 unlabeled ones, 2 test scans" in " ".join(report.split())
    for method in ("supervised", "alhvr"):
        scores = json.loads((output / "scores" / method / "metrics.json").read_text())
        assert list(scores["cases"]) == ["phantom_006", "phantom_007"]
        assert f"{scores['overall']['Dice']['mean']:.3f}" in said


@pytest.mark.slow
def test_demo_trains_both_on_the_same_terms(tiny_demo):
    output, _, _ = tiny_demo
    logs = [next((output / "logs").glob(f"*_train_{name}.log")).read_text() for name in ("supervised", "alhvr")]
    for log in logs:
        assert "epoch 2/2: loss " in log and "epoch 3" not in log
        assert "This split has 2 training and 1 validation cases" in log
    assert "ALHVR: 2 labeled + 2 unlabeled samples per step" in logs[1]
    assert "ALHVR" not in logs[0].split("epoch 1/2")[1]


@pytest.mark.slow
def test_regions_of_both_checkpoints_cover_every_voxel_once(tiny_demo):
    from alhvr_trainer.experiments.demo.region_maps import middle_slices, regions_of
    from alhvr_trainer.trainers.checkpoints import read_checkpoint

    output, _, _ = tiny_demo
    layout = Layout(output, "ALHVRPlansDemo")
    early = read_checkpoint(layout.early_checkpoint)
    final = read_checkpoint(layout.fold("ALHVRTrainer") / "checkpoint_final.pth")
    assert 1 <= early["current_epoch"] <= final["current_epoch"] == 2
    (folder,) = layout.preprocessed.glob("*_unlabeled")
    slices, names = middle_slices(folder, 2)
    assert names == ["phantom_003", "phantom_004"] and slices.shape == (2, 1, 48, 48)
    for checkpoint in (early, final):
        maps, gamma = regions_of(checkpoint, slices)
        assert all(region.shape == (2, 48, 48) for region in maps.values())
        np.testing.assert_array_equal(sum(region.astype(int) for region in maps.values()), 1)
        assert 0.25 <= gamma <= 1


@pytest.mark.slow
def test_second_demo_finds_everything_done(tiny_demo):
    output, command, _ = tiny_demo
    written = (output / "report.html").stat().st_mtime_ns
    # a changed module of the package repeats the steps: that would take longer
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "(11 of 11 steps are done already)" in result.stdout
    assert (output / "report.html").stat().st_mtime_ns == written
