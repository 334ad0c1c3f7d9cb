"""Images of chosen cases in a folder of their own, without copying them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from alhvr_trainer.data.dataset import Cases
from alhvr_trainer.data.sources import companions


@contextmanager
def linked_cases(cases: Cases, ending: str) -> Iterator[Path]:
    """A folder with links to the cases' images, ``CASE_0000`` and so on, and to what these refer to, until the end.

    Args:
        cases: case -> files in channel order.
        ending: of the dataset's files.

    Example:
        >>> with linked_cases({"a": ["/scans/a_0000.nii.gz"]}, ".nii.gz") as folder:    # doctest: +SKIP
        ...     predict(input=folder, output="OUT", model_folder="MODEL")
    """
    with TemporaryDirectory(prefix="alhvr_images_") as folder:
        links: dict[str, Path] = {}
        for case, files in cases.items():
            for channel, file in enumerate(files):
                links |= {Path(name).name: Path(name) for name in companions(file)}  # channels may share one
                links[f"{case}_{channel:04d}{ending}"] = Path(file)
        for name, source in links.items():
            if source.exists():
                Path(folder, name).symlink_to(source.resolve())
        yield Path(folder)
