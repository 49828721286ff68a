"""How long a step would take, from counted work and published rates: a range, since only bounds are known.

| part | time |
|---|---|
| gdpa, attention | each call at its roofline (`pallas_kernels.roofline`), forward and backward |
| maps | FLOPs of all other matrix products, three forward passes, at the peak |
| traffic | bytes that all other compiled instructions move, at the bandwidth (`hlo.Module.moved`) |
| nvlink, network | bytes that a device sends, at the rate of the link (`machine`) |

Overlapped: maps and traffic at once, and both links while the chip computes. Apart: one after the other. All rates are
the datasheet's, so a measurement will lie beyond the longer of both rather than between them. Operators and maps are
those of mean histories, traffic that of the rows which the fullest batch needs, since a step moves all of its capacity.

`pallas_kernels.compile_check.predict` would say more of a kernel than its roofline. It counts for heads of 128 at the
shapes of `compile_check.work`; no preset here has such heads, so it says nothing of them, and is not asked.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.dry_run.machine import Machine
from experiments.mfu_bound import calls, seconds
from kunlun_jax import flops
from kunlun_jax.models.base import Model
from kunlun_jax.models.system import System

LINKS = ("nvlink", "network")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of a step.

    Attributes:
      parts: name -> seconds.
      useful: FLOPs of a device that count.
      peak: FLOP/s of a device.
    """

    parts: Mapping[str, float]
    useful: float
    peak: float

    @property
    def overlapped(self) -> float:
        """Seconds, if all overlaps that can."""
        parts = self.parts
        compute = parts["gdpa"] + parts["attention"] + max(parts["maps"], parts["traffic"])
        return max(compute, *(parts[link] for link in LINKS))

    @property
    def apart(self) -> float:
        """Seconds, if nothing overlaps."""
        return sum(self.parts.values())

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def mfu(self) -> tuple[float, float]:
        """Least and most MFU of the range."""
        return self.useful / self.apart / self.peak, self.useful / self.overlapped / self.peak


def counted(model: Model, lengths: Mapping[str, np.ndarray], examples: int, machine: Machine) -> dict[str, float]:
    """What a row stores of the work of a device: useful FLOPs, and seconds of operators and maps.

    Args:
      model: may be shapes.
      lengths: event type -> lengths of some histories.
      examples: of one device's batch.
      machine: whose chip has the rates.
    """
    size = len(next(iter(lengths.values()))) if lengths else 1
    scale = examples / size
    least = {"gdpa": 0.0, "attention": 0.0}
    own = 0.0  # of the operators, forward
    if isinstance(model, System):
        for operator, call in calls(model, lengths, False):
            least[operator] += seconds(call, machine.chip) * scale
            own += call.cost.forward_flops * scale
    forward = flops.total_flops(model.parts(lengths)) * examples
    maps = flops.TRAINING_FACTOR * max(forward - own, 0.0)
    return {
        "useful_flops": flops.TRAINING_FACTOR * forward,
        **{f"{name}_seconds": value for name, value in least.items()},
        "maps_seconds": maps / machine.chip.flops,
    }


def predict(row: Mapping[str, Any], machine: Machine) -> Prediction:
    """The prediction for a stored row."""
    work = row["work"]
    sent = {link: sum(one[link] for one in row["collectives"]) for link in LINKS}
    parts = {name: work[f"{name}_seconds"] for name in ("gdpa", "attention", "maps")}
    parts["traffic"] = row["moved_bytes"] / machine.chip.bandwidth
    parts |= {link: sent[link] / getattr(machine, link) for link in LINKS}
    return Prediction(parts, work["useful_flops"], machine.chip.flops)
