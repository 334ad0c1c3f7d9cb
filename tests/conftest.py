"""Shared set-up: few processes for nnU-Net, which nnU-Net it is, and the real data sets where they are."""

from __future__ import annotations

import os
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version
from quick_pools import share_imports

# before nnU-Net is imported: each worker process costs seconds of import, and one thread makes runs repeatable
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def imported_nnunet_version() -> str:
    """Version of the nnU-Net that ``import nnunetv2`` gives, which need not be the environment's own."""
    found = distribution("nnunetv2")
    spec = find_spec("nnunetv2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    described = Path(str(found.locate_file("nnunetv2")))
    if folder != described:
        raise pytest.UsageError(f"import nnunetv2 gives {folder}, but the version is known of {described}")
    return found.version


def pytest_configure(config: pytest.Config) -> None:
    """``ALHVR_TEST_NNUNET``: the nnU-Net that the tests are meant for; with another they would prove nothing."""
    meant, found = os.environ.get("ALHVR_TEST_NNUNET"), imported_nnunet_version()
    if meant and Version(meant) != Version(found):
        raise pytest.UsageError(f"these tests are to run with nnU-Net {meant}, but import nnunetv2 gives {found}")
    share_imports()


def pytest_report_header(config: pytest.Config) -> str:
    others = ", ".join(f"{name} {version(name)}" for name in ("monai", "torch"))
    return f"nnU-Net {imported_nnunet_version()}, {others}"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets: ``ALHVR_TEST_DATA``, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("ALHVR_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here ({folder}; set ALHVR_TEST_DATA)")
    return folder
