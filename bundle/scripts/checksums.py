"""The checksum file of the bundle: written at export, verified before the weights are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from .input_error import InputError

BUNDLE = Path(__file__).resolve().parents[1]
CHECKSUMS_FILE = "checksums.sha256"
COVERED = ("models/*.pt", "plans.json", "dataset.json", "scripts/*.py")
"""What decides about the result. The configs may be edited, so they are not covered."""


def bundle_folder() -> str:
    """The folder of the bundle that contains this package, for configs: ``bundle_root`` may have lost its ``#``."""
    return str(BUNDLE)


def write_checksums(bundle_root: str | Path) -> Path:
    """Write ``checksums.sha256`` in the format of ``sha256sum``, which can verify it as well.

    Example:
        python -c "from scripts.checksums import write_checksums; write_checksums('.')"    # in the bundle's folder
    """
    root = Path(bundle_root)
    lines = [f"{sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in _covered(root)]
    target = root / CHECKSUMS_FILE
    target.write_text("".join(lines), encoding="utf-8")
    return target


@lru_cache
def verify_checksums(bundle_root: str | Path = BUNDLE) -> bool:
    """See that the weights, the plans and the code are the exported ones; looks once per process.

    Args:
        bundle_root: default: the folder that holds this package, for programs that run bundles do not all tell it.

    Returns:
        True, so that configs can refer to it.

    Raises:
        InputError: the file of checksums is missing or unreadable, or a file that it lists is missing or changed.

    Example:
        >>> verify_checksums("acdc_bundle")    # doctest: +SKIP
        True
    """
    root = Path(bundle_root)
    again = "export the bundle again, or, if you changed it on purpose, call scripts.checksums.write_checksums"
    try:
        lines = (root / CHECKSUMS_FILE).read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines if line)}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {root / CHECKSUMS_FILE} ({error}): {again}") from error
    for name, digest in expected.items():
        if not (root / name).is_file():
            raise InputError(f"{root / name} is missing: {again}")
        if sha256(root / name) != digest:
            raise InputError(f"{root / name} is damaged or changed, its checksum differs: {again}")
    return True


def verify_checksums_or_exit(bundle_root: str | Path = BUNDLE) -> bool:
    """As :func:`verify_checksums`, but end the program: MONAI would wrap the error into pages of traceback."""
    try:
        return verify_checksums(bundle_root)
    except InputError as error:
        raise SystemExit(f"bundle: {error}") from error


def _covered(root: Path) -> Iterable[Path]:
    return sorted(path for pattern in COVERED for path in root.glob(pattern))


def sha256(path: Path) -> str:
    """Digest of a file of any size, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
