"""Fixtures: a finished training and the page about it, written once. For ``pytest_plugins = ["report_page"]``."""

from __future__ import annotations

from pathlib import Path

import data_builders
import pytest
from finished_training import QUICKLY, make_training


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders with a finished training."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as environment:
        data_builders.set_environment(environment, root)
        make_training(root, shape=(8, 32, 28))
    return root


@pytest.fixture
def finished(finished_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and nnU-Net's environment variables lead there. Nothing in it may be changed."""
    data_builders.set_environment(monkeypatch, finished_once)
    return finished_once


@pytest.fixture(scope="session")
def page_once(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the viewer and all that it can show."""
    from alhvr_trainer import report

    pytest.importorskip("ipyniivue", reason="the extra report is not installed")
    file = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as environment:
        data_builders.set_environment(environment, finished_once)
        return report(901, "2d", 0, output=file, validation=2, unlabeled=2, **QUICKLY)
