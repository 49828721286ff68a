"""MFU: the share, the window it is of, and the peak below it."""

import jax.numpy as jnp
import pytest

from kunlun_jax import mfu


def test_utilization_leaves_the_line_with_the_compilation_out():
    rates = [(20, 10.0), (40, 300.0), (60, 100.0), (70, 200.0)]
    found = mfu.utilization(5e6, rates, 1e10)
    assert found == {"mfu": pytest.approx(0.1), "examples_per_second": 200.0, "steps": [21, 70]}


def test_a_run_of_one_line_has_that_one():
    assert mfu.utilization(1e6, [(5, 50.0)], 1e9) == {"mfu": 0.05, "examples_per_second": 50.0, "steps": [1, 5]}


def test_a_cpu_has_a_measured_peak_once_a_process(monkeypatch):
    mfu.peak.cache_clear()
    monkeypatch.setattr(mfu, "MEASURED_SIZE", 64)
    first = mfu.peak(jnp.dtype("float32"))
    assert first.flops_per_second > 0 and first.dtype == "float32" and "64 x 64" in first.source
    assert mfu.peak(jnp.dtype("float32")) is first


def test_a_gpu_has_that_of_its_datasheet(monkeypatch):
    mfu.peak.cache_clear()

    class Device:
        device_kind = "NVIDIA B200"

    monkeypatch.setattr(mfu.jax, "devices", lambda: [Device()] * 8)
    monkeypatch.setattr(mfu.jax, "default_backend", lambda: "gpu")
    found = mfu.peak(jnp.dtype("bfloat16"), 8)
    mfu.peak.cache_clear()
    assert found == mfu.Peak(8 * 2250e12, "bfloat16", "datasheet of B200", "NVIDIA B200", 8)
