"""``alhvr suggest``: the table and the page, each method, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from data_builders import NAME

from alhvr_trainer import suggest
from alhvr_trainer.annotation import predictions
from alhvr_trainer.errors import InputError

pytestmark = pytest.mark.any_nnunet

pytest_plugins = ["planned_dataset"]

UNLABELED = {"case_004", "case_005", "scan_000", "scan_001", "scan_002"}


def suggested(output: Path, **options: Any) -> list[dict[str, str]]:
    table = suggest(901, "2d", 0, output=output, device="cpu", num_processes=1, **options)
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_method(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The second method takes the first one's predictions."""
    output = tmp_path / "suggestions"
    rows = suggested(output, number=3)
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and {row["case"] for row in rows} < UNLABELED
    scores = {
        case: json.loads((output / "predicted" / "uncertainty" / f"{case}.json").read_text()) for case in UNLABELED
    }
    worst = rows[0]["case"]
    assert scores[worst]["expected_dice"] == min(each["expected_dice"] for each in scores.values())
    assert float(rows[0]["score"]) == round(1 - scores[worst]["expected_dice"], 4)
    assert rows[0]["most_alike"] == "" and rows[1]["most_alike"] == worst and float(rows[1]["distance"]) >= 0
    assert all(Path(file).is_file() for row in rows for file in row["images"].split(";"))

    def must_not_run(**options: Any) -> None:
        raise AssertionError("predicts again")

    monkeypatch.setattr(predictions, "predict", must_not_run)
    by_entropy = suggested(output, number=1, method="entropy", diversity=0.0)
    assert scores[by_entropy[0]["case"]]["entropy"] == max(each["entropy"] for each in scores.values())
    by_foreground = suggested(output, number=9, method="foreground", seed=1)
    assert {row["case"] for row in by_foreground} == UNLABELED
    assert all(float(row["score"]) == float(row["foreground_voxels"]) for row in by_foreground)
    assert "5 of 5 unlabeled cases by foreground: " in capsys.readouterr().out
    page = (output / "suggestions.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 5 and "http" not in page
    for row in by_foreground:
        assert f"{row['case']}: slice " in page


def test_random_predicts_nothing(untrained: Path, tmp_path: Path):
    rows = suggested(tmp_path / "out", number=2, method="random", seed=3)
    assert len(rows) == 2 and not (tmp_path / "out" / "predicted").exists()
    assert all((row["method"], row["foreground_voxels"]) == ("random", "") for row in rows)
    assert [row["case"] for row in rows] == [
        row["case"] for row in suggested(tmp_path / "two", number=2, method="random", seed=3)
    ]
    assert "middle slice, 5 of 8" in (tmp_path / "out" / "suggestions.html").read_text(encoding="utf-8")


def test_predictions_of_another_checkpoint_are_made_again(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """As after the training that follows on a suggestion."""
    suggested(tmp_path / "out", number=1)
    asked: list[str] = []
    predict = predictions.predict
    monkeypatch.setattr(predictions, "predict", lambda **options: asked.append("again") or predict(**options))
    file = next(untrained.rglob("checkpoint_final.pth"))
    file.write_bytes(next(untrained.rglob("checkpoint_final.pth")).read_bytes() + b" ")
    suggested(tmp_path / "out", number=1)
    suggested(tmp_path / "out", number=1)
    assert asked == ["again"] and "holds predictions of an earlier checkpoint" in capsys.readouterr().out


def test_folders_of_others_are_left_alone(untrained: Path, tmp_path: Path):
    (tmp_path / "origin.json").write_text('{"who": "someone else"}')
    (tmp_path / "predicted").mkdir()
    with pytest.raises(InputError, match=r"origin.json is not this package's: choose another folder"):
        suggested(tmp_path, number=1)
    assert (tmp_path / "predicted").is_dir()
    with pytest.raises(InputError, match="belongs to the raw dataset Dataset901"):
        suggested(untrained / "raw" / NAME / "imagesTr_unlabeled", number=1, method="random")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "entropie"}, "method is 'entropie'; did you mean entropy"),
        ({"number": 0}, '"number" must be a whole number of at least 1, found 0'),
        ({"diversity": 1.5}, "diversity is 1.5; it must be from 0 to 1"),
        ({"trainer": "CPSTrainer"}, "no trained model .*CPSTrainer__ALHVRPlans__2d"),
    ],
)
def test_refused(untrained: Path, tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        suggested(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
