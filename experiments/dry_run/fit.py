"""Whether a step fits into a chip's memory, and what would make it fit."""

from collections.abc import Mapping
from typing import Any

from experiments.dry_run.machine import USABLE, Machine

OF_EXAMPLES = ("batch", "temporaries", "results beside the state")
"""Kinds of memory that grow with the examples of a device; all others do not."""
STEP = 8
"""Fewer examples are proposed in multiples of this, unless they are fewer."""


def needed(row: Mapping[str, Any]) -> int:
    """Bytes that a device needs."""
    return sum(row["memory"].values())


def fits(row: Mapping[str, Any], machine: Machine) -> bool:
    """Whether they are there."""
    return needed(row) <= USABLE * machine.memory


def remedies(row: Mapping[str, Any], machine: Machine) -> str:
    """What does not fit, and what would, by proportion: it is to be compiled to be sure."""
    memory, room = row["memory"], USABLE * machine.memory
    text = (
        f"needs {needed(row) / 1e9:.1f} GB a device, and a {machine.chip.model} gives {room / 1e9:.1f} GB "
        f"({USABLE:.0%} of {machine.memory / 1e9:.0f}); "
    )
    growing = sum(memory[kind] for kind in OF_EXAMPLES)
    fixed = needed(row) - growing
    examples = int(row["examples"] * (room - fixed) / growing) if growing else 0
    if examples >= STEP:
        examples -= examples % STEP
    if examples >= 1:
        more = -(-row["examples"] // examples)
        return text + (
            f"about {examples} examples a device would fit instead of {row['examples']} (--examples), so for the same "
            f"batch of all devices at least {more} times as many devices"
        )
    tables = memory["tables"] + memory["table optimizer state"]
    if tables > fixed / 2:
        return text + (
            f"tables alone take {tables / 1e9:.1f} GB: large ones are cut over the devices, so more devices, a smaller "
            "model.embedding_dim or smaller tables would make it fit"
        )
    return text + (
        f"parameters and their optimizer's state alone take {(fixed - tables) / 1e9:.1f} GB, which no number of "
        "examples changes: a smaller model, or dense parameters that are cut over devices, by a mesh axis that does so"
    )
