"""The package's floors (docs/architecture.md): a module imports from its own or from lower ones."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "alhvr_trainer"
FLOORS = (
    ("losses", "bundle"),
    ("errors", "compatibility", "resources", "devices", "cluster", "processes"),
    ("config", "augmentation"),
    ("data",),
    ("planning", "trainers"),
    ("models",),
    ("commands", "evaluation", "export"),
    ("reports",),
    ("annotation",),
    ("pseudo_labels",),
    ("experiments",),
    ("cli", "ext_trainer", "__init__", "__main__"),
)
HEIGHT = {part: height for height, floor in enumerate(FLOORS) for part in floor}


def imported_parts(file: Path) -> set[str]:
    """Parts of the package that a module imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [node.module] if "." in node.module else [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = {name.split(".")[1] for name in names if name.startswith("alhvr_trainer.")}
    return {part for part in parts if part != "__version__"}


def test_a_module_imports_from_its_own_floor_or_below():
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert {part for part in imported_parts(file) if HEIGHT[part] > HEIGHT[own]} == set(), file


def test_parts_of_one_floor_do_not_import_each_other():
    for part in ("losses", "planning", "trainers", "evaluation", "export", "config", "augmentation", "data"):
        floor = next(floor for floor in FLOORS if part in floor)
        for module in (PACKAGE / part).rglob("*.py"):
            assert not imported_parts(module) & (set(floor) - {part}), module
