"""The tests of a floor import nothing of a floor above it; of the floors themselves `make lint` says the same."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FLOORS = {
    "pallas_kernels": ("pallas_kernels",),
    "data": (
        "kunlun_jax.data",
        *(
            f"kunlun_jax.{x}"
            for x in (
                "batch",
                "checksums",
                "executed",
                "flops",
                "mfu",
                "parallel",
                "ranges",
                "scaling",
                "serialization",
            )
        ),
    ),
    "nn": ("kunlun_jax.nn",),
    "models": ("kunlun_jax.models",),
    "training": ("kunlun_jax.training", "kunlun_jax.inspection"),
    "torch_reference": ("kunlun_jax.torch_reference",),
    "experiments": ("experiments",),
}
"""Folder of tests -> modules of its floor, lowest first."""


def imported(file: Path) -> set[str]:
    """Modules that a file names in its imports, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def upwards(files: Iterable[Path], floor: str) -> list[str]:
    """What these files import of floors above `floor`, tests of those floors included."""
    names = list(FLOORS)
    names = names[names.index(floor) + 1 :]
    above = (*(module for name in names for module in FLOORS[name]), *(f"tests.{name}" for name in names))
    return sorted(
        f"{file.relative_to(TESTS)}: {module}"
        for file in files
        for module in imported(file)
        if any(module == x or module.startswith(x + ".") for x in above)
    )


@pytest.mark.parametrize("floor", FLOORS)
def test_tests_import_no_floor_above_theirs(floor):
    assert upwards((TESTS / floor).rglob("*.py"), floor) == []


def test_what_tests_of_several_floors_share_imports_no_floor_above_the_lowest_of_them():
    """The test modules beside them are of the whole repository."""
    shared = [file for file in TESTS.glob("*.py") if not file.name.startswith("test_")]
    assert TESTS / "examples.py" in shared
    assert upwards(shared, "data") == []
