"""Block sizes by device: those measured on it, else built-in defaults for its chip generation.

An operator has a folder of JSON files, one for each device, e.g. ``gdpa/tuning/nvidia-h100-80gb-hbm3.json``, written by
``python -m experiments.kernels tune``:

    {"format": 1, "device": "NVIDIA H100 80GB HBM3", "generation": "sm90", "made_by": {...},
     "entries": [{"pass": "forward", "dim": 128, "keys": 256, "activation": "special", "dtype": "bfloat16",
                  "config": {"block": 128, "stages": 2}, "seconds": 0.0011, "default_seconds": 0.0013}]}

`config_for` gives the config of a shape; one that was not tuned gets the default, and the log says so once.
"""

import dataclasses
import functools
import itertools
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.mosaic import sm90, sm100
from pallas_kernels.mosaic.config import CONFIGS, SHARED_MEMORY, TENSOR_MEMORY, Config, Sm90Config, Sm100Config

logger = logging.getLogger(__name__)

FORMAT = 1
PASSES = ("forward", "dq", "dkv")
CLASSES = ("special", "plain", "softmax")
"""Activations that need the special-function units, those that do not, and softmax; within a class times are alike."""
DTYPES = ("bfloat16", "float16")
JAGGED = "jagged"

_PLAIN = ("relu", "leaky_relu", "relu_squared", "hardswish", "identity")
_OUTPUTS = {"forward": 1, "dq": 1, "dkv": 2}
_REGISTERS = 226
"""Registers of a compute thread that accumulators and weights may take, out of 240; more would spill."""


@dataclasses.dataclass(frozen=True)
class Key:
    """The key under which a tuned config is stored.

    Attributes:
      pass_: "forward", "dq" or "dkv".
      dim: width of a head.
      keys: what is known about the other side: dense keys of an example (gdpa), keys in a window (window_attention),
        seeds (seed_attention), or "jagged".
      activation: "special", "plain" or "softmax", see `activation_class`.
      dtype: name of the 16-bit dtype of the operands.
    """

    pass_: str
    dim: int
    keys: int | str
    activation: str
    dtype: str = "bfloat16"

    def __post_init__(self):
        for name, value, allowed in (
            ("pass", self.pass_, PASSES),
            ("activation", self.activation, CLASSES),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if not isinstance(self.dim, int) or self.dim < 16:
            raise ValueError(f"dim is {self.dim!r}; it must be a whole number, 16 or more")
        if self.keys != JAGGED and (not isinstance(self.keys, int) or self.keys < 1):
            raise ValueError(f"keys is {self.keys!r}; it must be a positive number or 'jagged'")

    def __str__(self) -> str:
        return f"{self.pass_} d{self.dim} keys {self.keys} {self.activation} {self.dtype}"


def activation_class(activation: str) -> str:
    """The class of an activation, by name, or of "softmax"; ValueError for an unknown one."""
    if activation == "softmax":
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} does not exist; there are softmax, {', '.join(ACTIVATIONS)}")
    return "plain" if activation in _PLAIN else "special"


def slug(device_kind: str) -> str:
    """The name of a device's files: lower case, runs of anything but letters and digits as one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")


def generation(device_kind: str) -> str:
    """The generation, "sm90" or "sm100"; ValueError for a device without Mosaic kernels."""
    for name, chips in {"sm90": ("h100", "h20", "h800", "gh200"), "sm100": ("b200", "b100", "b300")}.items():
        if any(chip in device_kind.lower() for chip in chips):
            return name
    raise ValueError(f"device {device_kind!r}: Mosaic kernels are for Hopper and data-center Blackwell chips")


def polynomial_share(activation: str, generation: str) -> int:
    """Built-in `Config.polynomial` for a class of activations.

    On sm_100 a tanh for each score would take as long as the products, by the datasheet's clocks, so half of the
    scores use polynomials.
    """
    return 4 if activation == "special" and generation == "sm100" else 0


def default(key: Key, generation: str, operator: str = "gdpa") -> Config:
    """The built-in config, which fits and compiles without spills; ValueError for a generation without one."""
    if generation not in CONFIGS:
        raise ValueError(f"generation={generation!r} has no built-in block sizes; there are {' and '.join(CONFIGS)}")
    if key.activation == "softmax":
        return _default_softmax(key, generation, operator)
    stages = 4 if key.dim < 128 else 2
    if generation == "sm90":
        config = {
            "forward": Sm90Config(block=128, stages=stages, stationary_stages=2),
            "dq": Sm90Config(block=64, stages=4),
            "dkv": Sm90Config(block=64, stages=2),
        }[key.pass_]
    else:
        share = polynomial_share(key.activation, generation)
        config = {
            "forward": Sm100Config(block=128, stages=stages, polynomial=share),
            "dq": Sm100Config(block=64, stages=stages, polynomial=share),
            "dkv": Sm100Config(block=128, stages=stages, units=1, warpgroups=2, polynomial=share),
        }[key.pass_]
    # Where all keys of an example fit, they stay in shared memory for four tiles of queries.
    kept = dataclasses.replace(config, run=4)
    return kept if _holds(key, kept) else config


def _default_softmax(key: Key, generation: str, operator: str) -> Config:
    module = sm90 if generation == "sm90" else sm100
    # Seeds that fit in one tile leave a second unit without work.
    few = operator == "seed_attention" and key.pass_ != "dkv" and int(key.keys) <= module.TILE_ROWS
    if generation == "sm90":
        # Long tiles would cover a narrow window with much to spare.
        narrow = operator == "window_attention" and key.keys != JAGGED and int(key.keys) < 512
        wide = Sm90Config(block=128, stages=2 if key.dim == 128 else 4)
        config = {
            "forward": Sm90Config(block=64, stages=4) if narrow else wide,
            "dq": Sm90Config(block=64, stages=3),
            "dkv": Sm90Config(block=64, stages=2),
        }[key.pass_]
        return dataclasses.replace(config, units=1) if few else config
    stages = 4 if key.dim < 128 else 2
    # A unit skips whole tiles: with a narrow window, shorter tiles leave less to mask.
    narrow = operator == "window_attention" and key.keys != JAGGED and int(key.keys) <= 2 * module.TILE_ROWS
    short = Sm100Config(block=64, stages=4, units=1, score_stages=2)
    shared = Sm100Config(block=128, stages=stages, units=1, warpgroups=2)
    config = {
        "forward": Sm100Config(block=64, stages=4, score_stages=2) if narrow else Sm100Config(block=128, stages=stages),
        "dq": Sm100Config(block=64, stages=stages),
        "dkv": short if narrow or (operator == "seed_attention" and int(key.keys) <= short.block) else shared,
    }[key.pass_]
    return dataclasses.replace(config, units=1, score_stages=2) if few else config


def _holds(key: Key, config: Config) -> bool:
    """Whether the slots hold all streamed rows of an example; their number must be known."""
    return (
        key.activation != "softmax"
        and key.pass_ != "dkv"
        and key.keys != JAGGED
        and -(-int(key.keys) // config.block) <= config.stages
    )


def fits(key: Key, config: Config) -> bool:
    """Whether the tiles fit into shared memory, tensor memory and, by estimate, registers, and a run into its slots."""
    backward, outputs = key.pass_ != "forward", _OUTPUTS[key.pass_]
    if config.run > 1 and not _holds(key, config):
        return False
    if isinstance(config, Sm100Config):
        if config.warpgroups == 2 and not backward:
            return False
        # For seeds, dq and partial outputs are float32.
        vectors = {"online": not backward, "statistics": 2 * backward, "out_itemsize": 4}
        used = sm100.shared_memory(
            key.dim,
            2,
            backward=backward,
            config=config,
            outputs=outputs,
            **(vectors if key.activation == "softmax" else {}),
        )
        columns = sm100.tensor_memory(key.dim, backward=backward, outputs=outputs, config=config)
        return used <= SHARED_MEMORY and columns <= TENSOR_MEMORY
    assert isinstance(config, Sm90Config)
    softmax = key.activation == "softmax"
    # Seeds have float32 results in all passes but the last; windows need less, but the key does not tell.
    out_itemsize = 4 if softmax and outputs == 1 else 2
    used = sm90.shared_memory(
        key.dim, 2, backward=backward, outputs=outputs, config=config, out_itemsize=out_itemsize, softmax=softmax
    )
    if used > SHARED_MEMORY:
        return False
    # float32 scores (and gradients of weights) of a 64-row tile, their 16-bit copies, and the sums, per thread.
    scores = config.block // 2 * (2 if backward else 1)
    weights = config.block // 4 * (outputs if not config.weights_in_smem else 0)
    return scores + weights + outputs * key.dim // 2 <= _REGISTERS


def candidates(key: Key, generation: str, operator: str = "gdpa") -> Iterator[Config]:
    """Configs worth measuring, the default of the operator first, then those with the fewest changes from it."""
    first = default(key, generation, operator)
    yield first
    polynomials = (0, 4, 8) if key.activation == "special" else (0,)
    softmax = key.activation == "softmax"
    # The part of a tile outside the window is wasted work, so short tiles are worth a try there.
    blocks = (32, 64, 96, 128, 192) if softmax else (64, 128, 192, 256)
    runs = (1,) if softmax else (1, 4, 16)
    variants = _VARIANTS[generation] + (_ONE_UNIT if softmax and generation == "sm90" else ())
    found = [
        dataclasses.replace(
            first, block=block, stages=stages, stationary_stages=slots, run=run, polynomial=polynomial, **more
        )
        for block, stages, slots, run, polynomial, more in itertools.product(
            blocks, (2, 3, 4), (1, 2), runs, polynomials, variants
        )
        if more.get("warpgroups") != 2 or block % 64 == 0
    ]
    found = [config for config in dict.fromkeys(found) if config != first and fits(key, config)]
    names = dataclasses.asdict(first)
    changes = {config: sum(getattr(config, name) != getattr(first, name) for name in names) for config in found}
    yield from sorted(found, key=lambda config: (changes[config], -config.block, -config.stages))


_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "sm90": ({"ping_pong": True}, {"ping_pong": False}),
    "sm100": (
        *({"units": units, "score_stages": slots, "warpgroups": 1} for units in (1, 2) for slots in (1, 2)),
        {"units": 1, "score_stages": 1, "warpgroups": 2},
    ),
}
_ONE_UNIT: tuple[dict[str, Any], ...] = ({"units": 1},)


def config_from_json(fields: Any, generation: str, where: str) -> Config:
    """A config from its JSON object; ValueError naming the file, the field and a valid value."""
    kind = CONFIGS[generation]
    known = dataclasses.fields(kind)
    names = [field.name for field in known]
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: config is {fields!r}; it must be an object of {', '.join(names)}")
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise ValueError(f"{where}: config has the unknown fields {', '.join(unknown)}; there are {', '.join(names)}")
    for field in known:
        value = fields.get(field.name, field.default)
        if type(value) is not type(field.default):
            raise ValueError(
                f"{where}: config.{field.name} is {value!r}; it must be of type {type(field.default).__name__}"
            )
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@functools.cache
def read(path: Path) -> dict[Key, Config]:
    """The configs of a tuning file, {} if there is none.

    Raises:
      ValueError: another format, unknown or missing fields, a config that is not valid or does not fit the chip, or two
        entries with the same key.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path.name}: format must be {FORMAT}; tune again")
    lacking = [name for name in ("device", "generation", "made_by", "entries") if name not in content]
    if lacking:
        raise ValueError(f"{path.name} lacks {', '.join(lacking)}")
    generation = content["generation"]
    if generation not in CONFIGS:
        raise ValueError(f"{path.name}: generation is {generation!r}; it must be one of {', '.join(CONFIGS)}")
    found: dict[Key, Config] = {}
    needed, noted = {"pass", "dim", "keys", "activation", "dtype", "config"}, {"seconds", "default_seconds", "measured"}
    for number, entry in enumerate(content["entries"]):
        where = f"{path.name}, entry {number}"
        if missing := sorted(needed - set(entry)):
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        if unknown := sorted(set(entry) - needed - noted):
            raise ValueError(f"{where} has the unknown fields {', '.join(unknown)}")
        try:
            key = Key(entry["pass"], entry["dim"], entry["keys"], entry["activation"], entry["dtype"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        config = config_from_json(entry["config"], generation, where)
        if not fits(key, config):
            raise ValueError(f"{where}: {config} does not fit {key} on {generation}")
        if key in found:
            raise ValueError(f"{where}: {key} appears twice")
        found[key] = config
    return found


def config_for(key: Key, device_kind: str, folder: Path) -> Config:
    """The config for a shape on a device: the tuned one, else the default, which is logged once.

    Args:
      key: the shape.
      device_kind: the name that JAX gives the device.
      folder: the operator's tuning files.

    Raises:
      ValueError: a device without kernels, or an invalid tuning file.
    """
    tuned = read(folder / f"{slug(device_kind)}.json").get(key)
    if tuned is not None:
        return tuned
    _log_default(folder.parent.name, key, device_kind)
    return default(key, generation(device_kind), folder.parent.name)


@functools.cache
def _log_default(operator: str, key: Key, device_kind: str) -> None:
    """Logs once per process and shape: the cache is what makes it once."""
    logger.info("%s: %s is not tuned for %s; built-in block sizes are used", operator, key, device_kind)
