"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CALL = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d+)\[([\d,]*)\]")
BYTES = {"f32": 4, "f64": 8, "s32": 4, "u32": 4}


def collectives(text: str) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Kind -> dtype and shape of each array that a device gets from one; several calls may have been made one."""
    found = defaultdict(list)
    for results, kind in _CALL.findall(text):
        for dtype, shape in _ARRAY.findall(results):
            found[kind].append((dtype, tuple(map(int, filter(None, shape.split(","))))))
    return found


def size(arrays: list[tuple[str, tuple[int, ...]]]) -> int:
    """Their bytes."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in arrays)
