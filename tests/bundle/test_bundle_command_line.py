"""What people type after ``python -m monai.bundle``: keys and values that MONAI would take for something else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scripts import command_line
from scripts.command_line import check_or_exit

pytestmark = pytest.mark.any_nnunet
CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def type_in(monkeypatch: pytest.MonkeyPatch, config: str, *words: str) -> None:
    command = ["site-packages/monai/bundle/__main__.py", "run", "--config_file", str(CONFIGS / f"{config}.json")]
    monkeypatch.setattr(sys, "argv", [*command, *words])


@pytest.mark.parametrize("config", ["inference", "inference_native"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--use_miroring", "False"), "--use_miroring is not a key of .*; did you mean --use_mirroring"),
        (("--use_mirroring", "false"), "--use_mirroring is false; it must be True or False"),
        (("--use_mirroring", "no"), "--use_mirroring is no; it must be True or False"),
        (("--overlap", "1.5"), "--overlap is 1.5; it must be a share of the patch, at least 0 and below 1"),
        (("--overlap", "-0.5"), "--overlap is -0.5; it must be"),
        (("--overlap", "much"), "--overlap is much; it must be"),
        (
            ("--device", "gpu"),
            "--device is gpu, which there is not here; leave it out, or name one, e.g. cpu or cuda:0",
        ),
        (("--device", "cuda:99"), "--device is cuda:99, which there is not here"),
    ],
)
def test_what_is_refused(config, words, message, monkeypatch):
    type_in(monkeypatch, config, *words)
    with pytest.raises(SystemExit, match=f"^bundle: {message}"):
        check_or_exit()


def test_the_configuration_is_one_of_the_model(monkeypatch, tmp_path):
    (tmp_path / "plans.json").write_text('{"configurations": {"2d": {}, "3d_fullres": {}}}')
    monkeypatch.setattr(command_line, "_PLANS", tmp_path / "plans.json")
    type_in(monkeypatch, "inference", "--configuration", "3d")
    with pytest.raises(SystemExit, match=r"^bundle: --configuration is 3d; this model has 2d, 3d_fullres$"):
        check_or_exit()


def test_what_is_taken(monkeypatch):
    type_in(
        monkeypatch, "inference", "--use_mirroring", "False", "--overlap", "0.25", "--device", "$torch.device('cpu')"
    )
    check_or_exit()
