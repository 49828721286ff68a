"""The tests of a floor import nothing of a floor above it; of the floors themselves `make lint` says the same."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FLOORS = {
    "pallas_kernels": ("pallas_kernels",),
    "data": ("kunlun_jax.data", "kunlun_jax.batch", "kunlun_jax.flops", "kunlun_jax.serialization"),
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


@pytest.mark.parametrize("floor", FLOORS)
def test_tests_import_no_floor_above_theirs(floor):
    names = list(FLOORS)
    above = tuple(module for name in names[names.index(floor) + 1 :] for module in FLOORS[name])
    tests_above = tuple(f"tests.{name}" for name in names[names.index(floor) + 1 :])
    wrong = {
        f"{file.relative_to(TESTS)}: {module}"
        for file in (TESTS / floor).rglob("*.py")
        for module in imported(file)
        if any(module == x or module.startswith(x + ".") for x in (*above, *tests_above))
    }
    assert not wrong, sorted(wrong)
