"""Stand-in until the module of this name is merged: cases of NIfTI files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def find_cases(dataset_dir: str, num_channels: int, endings: Any = None) -> list[dict[str, Any]]:
    """``[{"case": name, "image": [files]}]``."""
    first = sorted(Path(dataset_dir).glob("*_0000.nii.gz"))
    names = [path.name.removesuffix("_0000.nii.gz") for path in first]
    return [
        {
            "case": name,
            "image": [str(Path(dataset_dir) / f"{name}_{channel:04d}.nii.gz") for channel in range(num_channels)],
        }
        for name in names
    ]
