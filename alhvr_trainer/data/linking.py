"""Images of chosen cases in a folder of their own, without copying them."""

from __future__ import annotations

from pathlib import Path

from alhvr_trainer.data.dataset import Cases
from alhvr_trainer.data.sources import companions


def link_cases(cases: Cases, folder: Path, ending: str) -> Path:
    """Links to the image files of the cases, named ``CASE_0000`` and so on, and to what these files refer to.

    Args:
        cases: case -> files in channel order.
        folder: made if it is not there; other links in it are removed.
        ending: of the dataset's files.

    Returns:
        The folder.

    Example:
        >>> link_cases({"a": ["/scans/a_0000.nii.gz"]}, Path("chosen"), ".nii.gz")   # doctest: +SKIP
        PosixPath('chosen')
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for case, files in cases.items():
        for channel, file in enumerate(files):
            (folder / f"{case}_{channel:04d}{ending}").symlink_to(Path(file).resolve())
            for companion in companions(file):
                (folder / Path(companion).name).symlink_to(Path(companion).resolve())
    return folder
