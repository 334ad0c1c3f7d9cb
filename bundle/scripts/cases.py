"""Stand-in until the real one is merged."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError


def find_cases(dataset_dir, num_channels, file_ending=".nii.gz"):
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"dataset_dir {folder} does not exist")
    files = {}
    for path in sorted(folder.glob(f"*{file_ending}")):
        files.setdefault(path.name[: -len(file_ending) - 5], []).append(str(path))
    if not files:
        raise InputError(f"no image <case>_0000{file_ending} in dataset_dir {folder}")
    for case, paths in files.items():
        if len(paths) != num_channels:
            names = ", ".join(Path(file).name for file in paths)
            raise InputError(
                f"case {case} in {folder} has {len(paths)} channels ({names}), the model needs {num_channels}"
            )
    return [{"case": case, "image": paths} for case, paths in files.items()]


def find_cases_or_exit(dataset_dir, num_channels, file_ending=".nii.gz"):
    try:
        return find_cases(dataset_dir, num_channels, file_ending)
    except InputError as error:
        raise SystemExit(f"bundle: {error}") from error


def nnunet_readable(files, endings, folder):
    return list(files)
