"""Where the Triton kernels cannot run and what is said then, and what is imported when."""

import importlib.metadata
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import gdpa, seed_attention, window_attention
from pallas_kernels.triton import target
from tests import processes

SPLITS, LENGTHS = jnp.array([0, 8, 16], jnp.int32), jnp.array([5, 8], jnp.int32)


def call(operator, dtype=jnp.bfloat16, dim=16, implementation="triton"):
    rows = jnp.ones((16, 2, dim), dtype)
    q = rows[:3] if operator is seed_attention else rows
    options = {"window": (1, 1)} if operator is window_attention else {}
    return operator(q, rows, rows, SPLITS, LENGTHS, implementation=implementation, **options)


OPERATORS = pytest.mark.parametrize("operator", [gdpa, window_attention, seed_attention])


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="here the kernels can run")
@OPERATORS
def test_without_a_gpu_it_says_so_and_the_default_is_xla(operator):
    with pytest.raises(ValueError, match="implementation='triton' cannot run: the default device is a cpu"):
        call(operator)
    assert (call(operator, implementation=None) == call(operator, implementation="xla")).all()


@OPERATORS
def test_it_says_which_operands_it_takes(operator):
    with target.build_for(target.Target(80)):
        with pytest.raises(ValueError, match="take bfloat16 and float16, and q has dtype float32"):
            call(operator, dtype=jnp.float32)
        with pytest.raises(ValueError, match="take heads of width 16, 32, 64, 128, and q has 24"):
            call(operator, dim=24)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("7.5", "the GPU \\(T4\\) has compute capability 7.5, and the kernels need 8.0 or more"),
        ("gfx942", "the GPU \\(T4\\) is gfx942, and the kernels are for NVIDIA's"),
    ],
)
def test_a_gpu_that_will_not_do(monkeypatch, version, message):
    device = types.SimpleNamespace(platform="gpu", device_kind="T4", compute_capability=version)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    with pytest.raises(ValueError, match=message):
        call(gdpa)


@pytest.fixture
def a100(monkeypatch):
    """A GPU that will do, with everything installed."""
    device = types.SimpleNamespace(platform="gpu", device_kind="A100", compute_capability="8.0")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.1")
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))


def test_a_gpu_that_will_do(a100):
    assert target.current() == target.Target(80)
    assert target.refusal(jnp.ones((16, 2, 64), jnp.float16)) is None


def test_what_is_not_installed_is_named(a100, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax_triton" else name)
    with pytest.raises(ValueError, match=r"jax_triton is not installed: pip install kunlun_jax\[triton\]"):
        call(gdpa)


def test_a_jax_that_is_too_new_is_named(a100, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    assert "jax-triton 0.4.1 does not lower on jax" in str(target.current())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.0")
    assert target.current() == target.Target(80)


def test_an_operator_called_by_itself_says_why_it_cannot_run():
    from pallas_kernels.operators.gdpa import triton

    if not isinstance(target.current(), str):
        pytest.skip("here the kernels can run")
    rows = jnp.ones((16, 2, 16), jnp.bfloat16)
    with pytest.raises(ValueError, match="gdpa: implementation='triton' cannot run"):
        triton.gdpa(
            rows, rows, rows, SPLITS, LENGTHS, SPLITS, LENGTHS, activation="relu", pre_scale=1.0, post_scale=1.0
        )


def test_nothing_of_triton_is_imported_before_a_kernel_is_built():
    code = (
        "import sys\n"
        "from pallas_kernels.compile_check import check\n"
        "from pallas_kernels.operators.gdpa import api\n"
        "from pallas_kernels.operators.seed_attention import api\n"
        "from pallas_kernels.operators.window_attention import api\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'triton', 'jax_triton', 'torch'}))"
    )
    done = processes.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
