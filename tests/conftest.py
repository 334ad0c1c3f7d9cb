"""Shared set-up: few processes for nnU-Net, and the real data sets where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# before nnU-Net is imported: each worker process costs seconds of import, and one thread makes runs repeatable
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets: ``ALHVR_TEST_DATA``, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("ALHVR_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here ({folder}; set ALHVR_TEST_DATA)")
    return folder
