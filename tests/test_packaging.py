"""The locks, and that the core needs nothing but the core lock."""

import ast
import re
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests import processes

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements"
LOCKS = ("core", "dev", "newest", "compiler")
NAME = re.compile(r"^([A-Za-z0-9._-]+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path) -> dict[str, str]:
    """Name -> version of each pinned requirement in a requirements file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def blocks(text: str) -> list[str]:
    """The requirements of a lock, continuation lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_names_versions_and_hashes_alone(lock):
    requirements = blocks((REQUIREMENTS / f"{lock}.txt").read_text())
    shape = re.compile(r"[a-z0-9._-]+(\[[a-z0-9,._-]+\])?==\S+( ; [^@/]+?)?( ?--hash=sha256:[0-9a-f]{64})+")
    wrong = [requirement for requirement in requirements if not shape.fullmatch(requirement)]
    assert len(requirements) == 5 if lock == "compiler" else len(requirements) > 50
    assert not wrong
    assert not re.search(
        r"https?://|file:|--(extra-)?index-url|--find-links", (REQUIREMENTS / f"{lock}.txt").read_text()
    )


def test_the_developed_on_versions_are_locked_and_the_newest_lock_is_newer():
    wanted = pins(REQUIREMENTS / "pins.txt")
    core, newest = pins(REQUIREMENTS / "core.txt"), pins(REQUIREMENTS / "newest.txt")
    assert set(wanted) == {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"}
    assert wanted.items() <= core.items()
    assert tuple(map(int, newest["jax"].split("."))) >= (0, 12)


def test_the_compiler_is_that_of_the_locked_jax():
    compiler = pins(REQUIREMENTS / "compiler.txt")
    tools = {"nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm", "nvidia-nvvm"}
    assert set(compiler) == {"jax-cuda13-plugin", "jax-cuda13-pjrt"} | tools
    assert compiler["jax-cuda13-plugin"] == compiler["jax-cuda13-pjrt"] == pins(REQUIREMENTS / "dev.txt")["jax"]


def test_what_core_installs_dev_keeps():
    """`make test` after `make quickstart` adds packages and changes none."""
    assert pins(REQUIREMENTS / "core.txt").items() <= pins(REQUIREMENTS / "dev.txt").items()


@pytest.mark.parametrize(
    ("lock", "extras"), [("core", ()), ("dev", ("dev", "notebooks", "tensorboard", "torch")), ("newest", ())]
)
def test_locks_cover_the_project(lock, extras):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in extras for name in project["optional-dependencies"][extra]]
    names = {normal(NAME.match(requirement)[1]) for requirement in wanted} | {"setuptools"}
    assert names <= set(pins(REQUIREMENTS / f"{lock}.txt"))


@pytest.mark.parametrize("lock", ["core", "newest"])
def test_no_lock_but_that_of_development_brings_triton_or_cuda(lock):
    assert not [
        name
        for name in pins(REQUIREMENTS / f"{lock}.txt")
        if re.match(r"torch|triton|jax-triton|nvidia|jax-cuda", name)
    ]


def imports_torch(path: Path) -> bool:
    """Whether a file imports torch, safetensors, or the package that does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("torch", "safetensors") or "torch_reference" in name.split("."):
                return True
    return False


def test_torch_is_imported_in_the_reference_and_where_it_is_compared_alone():
    files = [
        path
        for package in ("kunlun_jax", "pallas_kernels", "experiments")
        for path in (REPOSITORY / package).rglob("*.py")
    ]
    importing = {path.relative_to(REPOSITORY).as_posix() for path in files if imports_torch(path)}
    reference = {name for name in importing if name.startswith("kunlun_jax/torch_reference/")}
    assert len(reference) >= 10
    allowed = {f"experiments/cross_check/{name}.py" for name in ("comparison", "fuxictr", "generative_recommenders")}
    assert importing - reference <= allowed | {"experiments/parity.py"}


def test_the_core_imports_without_any_extra(tmp_path):
    """In a process where the packages of every extra are absent; a warning there is an error, too."""
    program = """
        import importlib, pkgutil, sys

        absent = ["torch", "safetensors", "triton", "jax_triton", "jax_cuda13_plugin", "jax_cuda13_pjrt",
                  "tensorboardX", "tensorflow", "beartype", "hypothesis", "pytest", "sklearn", "IPython", "nbformat"]
        sys.modules.update(dict.fromkeys(absent))

        import kunlun_jax, pallas_kernels

        optional = ("torch_reference", "triton")
        names = [
            module.name
            for package in (kunlun_jax, pallas_kernels)
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
            if not set(module.name.split(".")) & set(optional)
        ]
        for name in names:
            importlib.import_module(name)
        import jax
        print(len(names), jax.default_backend())
    """
    result = processes.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    modules, backend = result.stdout.split()
    assert int(modules) >= 30
    assert backend == "cpu"
