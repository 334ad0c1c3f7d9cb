"""docs/tutorial.ipynb runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.any_nnunet

FILE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def test_it_is_committed_without_outputs(notebook: nbformat.NotebookNode):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_runs(notebook: nbformat.NotebookNode, tmp_path: Path):
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()

    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
    assert "4 of 4 cases are equal voxel by voxel" in "".join(output.get("text", "") for output in shown)

    made = tmp_path / "tutorial_output"
    maps = {path.name for path in (made / "predictions" / "uncertainty").glob("phantom_017*")}
    assert maps == {
        "phantom_017.json",
        *(f"phantom_017_{name}.nii.gz" for name in ("entropy", "disagreement", "regions")),
    }
    assert (made / "bundle" / "models" / "model.pt").is_file()
