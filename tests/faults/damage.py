"""Ways in which a file can come to be other than it was written, by number."""

from pathlib import Path

import numpy as np

WAYS = (
    "flip a bit",
    "flip many bits",
    "zero a part",
    "cut off",
    "empty",
    "lose a part",
    "repeat a part",
    "insert noise",
)


def damage(path: Path, seed: int) -> str:
    """Changes a file that is not empty in one of `WAYS`; returns which."""
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    way = WAYS[seed % len(WAYS)]
    start = int(rng.integers(len(data)))
    stop = min(len(data), start + int(rng.integers(1, 64)))
    match way:
        case "flip a bit":
            data[start] ^= 1 << int(rng.integers(8))
        case "flip many bits":
            for place in rng.integers(len(data), size=20):
                data[place] ^= int(rng.integers(1, 256))
        case "zero a part":
            data[start:stop] = bytes(stop - start)
        case "cut off":
            del data[start:]
        case "empty":
            data.clear()
        case "lose a part":
            del data[start:stop]
        case "repeat a part":
            data[start:start] = data[start:stop]
        case "insert noise":
            data[start:start] = rng.bytes(stop - start)
    path.write_bytes(bytes(data))
    return way
