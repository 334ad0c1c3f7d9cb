"""The method of docs/new_method.md, as a reader would use it: the page's own text is what is tested."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.checkpoints import read_checkpoint

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "new_method.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 60
    file = tmp_path_factory.mktemp("method") / "mutual.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("mutual", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_loss_by_hand(example: Any):
    student, teacher = torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[2.0 * math.log(3.0)], [0.0]]])
    # softened by 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert example.mutual_loss(student, teacher, 2.0).tolist() == [[pytest.approx(expected)]]


def test_it_trains_saves_and_resumes(example: Any, tiny: Path):
    change_settings(tiny, num_epochs=2, mutual_temperature=3.0, threshold_proportion=0.5)  # ALHVR's key, not its own
    trainer = make_trainer(tiny, example.MutualTrainer)
    assert trainer.settings.mutual_temperature == 3.0 and not hasattr(trainer.settings, "threshold_proportion")
    trainer.initialize()
    start = {name: [p.clone() for p in net.parameters()] for name, net in trainer.networks().items()}
    trainer.run_training()
    assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in trainer.monitor.history.values())
    assert trainer.monitor.history["mutual_a"][-1] > 0 and 1 / 3 <= trainer.monitor.history["confidence"][-1] <= 1
    for name, network in trainer.networks().items():
        assert any(not torch.equal(old, new) for old, new in zip(start[name], network.parameters(), strict=True))
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert {"network_b_weights", "optimizer_b_state"} <= set(read_checkpoint(checkpoint)["alhvr"])
    resumed = make_trainer(tiny, example.MutualTrainer, resume=True)
    resumed.load_checkpoint(str(checkpoint))
    for name, network in trainer.networks().items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, resumed.networks()[name].state_dict()[key])


def test_a_bad_value_of_its_setting_is_named(example: Any, tiny: Path):
    change_settings(tiny, mutual_temperature=0.5)
    with pytest.raises(
        InputError, match=r'"alhvr.mutual_temperature" .* is 0.5; it should be greater than or equal to 1'
    ):
        make_trainer(tiny, example.MutualTrainer)
