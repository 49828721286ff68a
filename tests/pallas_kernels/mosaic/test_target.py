"""Which kernels a device takes."""

import types

import jax
import pytest

from pallas_kernels.mosaic import target, tuning


def at_hand(monkeypatch, kind: str, capability: str):
    device = types.SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability, core_count=148)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    return target.current()


@pytest.mark.parametrize(
    ("kind", "capability", "generation"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0", "sm90"),
        ("NVIDIA B200", "10.0", "sm100"),
        ("NVIDIA B300 SXM6 AC", "10.3", "sm100"),
    ],
)
def test_a_chip_takes_the_kernels_of_its_generation(monkeypatch, kind, capability, generation):
    assert at_hand(monkeypatch, kind, capability) == target.Target(generation, 148, device_kind=kind)
    assert tuning.generation(kind) == generation


@pytest.mark.parametrize("capability", ["8.0", "12.0"])
def test_others_are_refused_by_what_they_are(monkeypatch, capability):
    refusal = at_hand(monkeypatch, "some GPU", capability)
    assert isinstance(refusal, str)
    assert "some GPU" in refusal and capability in refusal and "9.0, 10.0, 10.3" in refusal
    with pytest.raises(ValueError, match="some GPU"):
        tuning.generation("some GPU")
