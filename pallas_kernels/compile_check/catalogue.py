"""Every kernel in the configs in use, as cases that the check compiles without a GPU.

A new kernel adds a function that yields its cases to `GENERATORS`. A case's `build` is a function of a module, not a
lambda, since the case is sent to another process.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.chips import B200, H100, Chip
from pallas_kernels.compile_check import peers, work
from pallas_kernels.compile_check.predict import Prediction, Tiling, predict
from pallas_kernels.compile_check.sass import Loop
from pallas_kernels.mosaic import launch, target
from pallas_kernels.mosaic.activations import KERNEL_ACTIVATIONS
from pallas_kernels.mosaic.config import Config, Sm100Config
from pallas_kernels.operators.gdpa import block_mosaic
from pallas_kernels.operators.gdpa import mosaic as gdpa_kernels
from pallas_kernels.operators.seed_attention import mosaic as seed
from pallas_kernels.operators.window_attention import mosaic as window

NORM_PASSES = 9
"""Of GDPA's block, per head, beyond gdpa's own: LayerNorm reads a tile three times and writes it once; q' is read for
the residual; at the end z is read for RMSNorm, the rows arrive once more and are read, and the copy reads the result.
"""

CHIPS = {chip.name: chip for chip in (H100, B200)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel to compile.

    Attributes:
      operator: "gdpa", "gdpa_block", "window_attention" or "seed_attention".
      direction: "forward", "dq" or "dkv".
      generation: of the chips it is for.
      dim: width of a head.
      build: (case, chip) -> the function to jit, and a ShapeDtypeStruct for each of its arguments.
      config: block sizes.
      dtype: name of the operands' dtype.
      activation: a name of `pallas_kernels.activations`.
      ragged: whether the streamed rows need not be a multiple of the block.
      keys: dense keys of an example; None for jagged ones, in gdpa.
      window: rows read to either side.
      seeds: shared queries.
      short: whether examples are so short that what streams is copied without gaps, and no tails are (`tails.pays`);
        then the last streamed tile of an example reads on into the next one, and is masked.
    """

    operator: str
    direction: str
    generation: str
    dim: int
    build: Callable
    config: Config
    dtype: str = "bfloat16"
    activation: str = "gelu_tanh"
    ragged: bool = False
    keys: int | None = 256
    window: tuple[int, int] | None = None
    seeds: int | None = None
    short: bool = False

    @property
    def scores(self) -> float:
        """How many a thread computes in a step: a tile of `TILE_ROWS` by `Config.block` is a unit's."""
        return self.tile_rows * self.config.block / (128 * self.warpgroups)

    @property
    def shape(self) -> work.Shape | None:
        """What it is predicted for; None for a case that is not of a shape's width, keys, window or seeds, or short."""
        if self.short:
            return None
        if self.operator in ("gdpa", "gdpa_block") and (self.dim, self.keys) == (work.GDPA.dim, work.GDPA.keys):
            return work.GDPA
        if self.operator == "window_attention" and (self.dim, self.window) == (work.WINDOW.dim, work.WINDOW.window):
            return work.WINDOW
        shape = work.SEEDS.get(self.seeds) if self.seeds else None
        return shape if shape and shape.dim == self.dim else None

    @property
    def tiling(self) -> Tiling:
        """What a prediction needs of the block sizes."""
        sizes = (self.tile_rows, self.config.block, self.config.units, self.dim)
        passes = NORM_PASSES if self.operator == "gdpa_block" else 0
        return Tiling(self.direction, *sizes, self.generation == "sm90", self.warpgroups, passes)

    def predicted(self, loops: Sequence[Loop], chip: Chip) -> Prediction | None:
        """The prediction from its inner loops; None where there is none."""
        if self.shape is None:
            return None
        done = work.work(self.direction, self.generation, self.config, self.shape)
        if self.operator == "gdpa_block":
            # It also writes z, for a backward pass; its rows come again from the second-level cache. No tile is masked,
            # but on sm_100 the loop branches for each of two slots: the longest way has both, the shortest neither.
            done = done._replace(bytes=done.bytes + work.row_bytes(self.shape), edges=done.trips // 2)
        return predict(loops, self.tiling, done, chip)

    def of_peer(self, loops: Sequence[Loop], chip: Chip) -> Prediction | None:
        """The same with the tiles of tokamax; None where they are not known, or have other sizes than this case's."""
        sizes = (self.generation, self.tile_rows, self.config.block)
        if self.shape is not work.WINDOW or sizes != ("sm90", peers.UNIT, peers.UNIT):
            return None
        return predict(loops, self.tiling, peers.tokamax(self.direction), chip)

    @property
    def warpgroups(self) -> int:
        """Compute warpgroups of a unit."""
        return self.config.warpgroups if isinstance(self.config, Sm100Config) else 1

    @property
    def tile_rows(self) -> int:
        """Stationary rows of a unit."""
        return launch.kernel_of(target.Target(self.generation, 0)).TILE_ROWS

    @property
    def name(self) -> str:
        """A unique name; of the config it has block and stages, and whatever differs from the default."""
        parts = [self.operator, self.generation, self.direction, f"d{self.dim}", self.dtype, self.activation]
        parts += [f"block{self.config.block}", f"stages{self.config.stages}"]
        for field in dataclasses.fields(self.config):
            value = getattr(self.config, field.name)
            if field.name not in ("block", "stages") and value != field.default:
                parts.append(f"{field.name}{int(value)}")
        if self.keys != Case.keys:
            parts.append(f"keys{self.keys or 'jagged'}")
        if self.ragged:
            parts.append("ragged")
        if self.window:
            parts.append(f"window{self.window[0]}.{self.window[1]}")
        if self.seeds:
            parts.append(f"seeds{self.seeds}")
        if self.short:
            parts.append("short")
        return "-".join(parts)


BATCH, HEADS, ROWS, SHORT_ROWS = 64, 4, 64 * 512, 64 * 8
"""Sizes of every case, rows of long and of short examples; no kernel is specialized to them, so small ones suffice."""
OFFSETS = tuple(jax.ShapeDtypeStruct((n,), jnp.int32) for n in (BATCH + 1, BATCH))


def _rows(case: Case, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*shape, HEADS, case.dim), jnp.dtype(case.dtype))


def build_block(case: Case, chip: Chip) -> tuple[Callable, tuple]:
    """The forward pass of the personalized FFN's block, with fused norms."""
    chosen = target.Target(case.generation, chip.multiprocessors)

    def run(row_splits, lengths, q, k, v):
        with target.build_for(chosen):
            return block_mosaic.gdpa_block(
                q, k, v, row_splits, lengths, activation=case.activation, pre_scale=1.0, post_scale=1.0
            )

    assert case.keys is not None
    dense = _rows(case, BATCH, case.keys)
    return run, (*OFFSETS, _rows(case, ROWS), dense, dense)


def build_pass(case: Case, chip: Chip) -> tuple[Callable, tuple]:
    """One pass of an operator, as the operator calls it; unused results are not compiled."""
    chosen = target.Target(case.generation, chip.multiprocessors)
    call = functools.partial({"gdpa": _gdpa, "window_attention": _window, "seed_attention": _seed}[case.operator], case)

    def run(row_splits, lengths, q, k, v, grad):
        with target.build_for(chosen):
            if case.direction == "forward":
                return call(q, k, v, row_splits, lengths)
            dq, dk, dv = jax.vjp(lambda *operands: call(*operands, row_splits, lengths), q, k, v)[1](grad)
            return dq if case.direction == "dq" else (dk, dv)

    packed = _rows(case, SHORT_ROWS if case.short else ROWS)
    q, out = (_rows(case, case.seeds), _rows(case, BATCH, case.seeds)) if case.seeds else (packed, packed)
    k = packed if case.operator != "gdpa" or case.keys is None else _rows(case, BATCH, case.keys)
    return run, (*OFFSETS, q, k, k, out)


def _configs(case: Case) -> dict[str, Config]:
    return {case.direction: case.config}  # the defaults for the others


def _gdpa(case: Case, q, k, v, *offsets):
    key_offsets = offsets if case.keys is None else ()
    scales = {"pre_scale": 1.0, "post_scale": 1.0}
    return gdpa_kernels.gdpa(
        q, k, v, *offsets, *key_offsets, activation=case.activation, configs=_configs(case), **scales
    )


def _window(case: Case, *operands):
    assert case.window is not None
    return window.window_attention(*operands, window=case.window, scale=case.dim**-0.5, configs=_configs(case))


def _seed(case: Case, *operands):
    return seed.seed_attention(*operands, scale=case.dim**-0.5, configs=_configs(case))


def gdpa() -> Iterator[Case]:
    """The default configs of gdpa: every head width with dense keys that are kept in shared memory and with jagged
    ones; at the widest also float16, every activation, half of the scores by polynomials or none, and short examples.

    dk and dv stream the jagged queries. What is jagged is masked only where examples are short.
    """
    for generation in target.GENERATIONS:
        for dim in launch.DIMS:
            for keys in (256, None):
                chip = target.Target(generation, 0)
                configs = launch.configs_for("gdpa", chip, jnp.dtype("bfloat16"), dim, keys, Case.activation)
                for direction in ("forward", "dq", "dkv"):
                    if direction == "dkv" and keys is None:
                        continue  # the same as with dense keys
                    config = configs[direction]
                    fields = {"ragged": keys is None or direction == "dkv", "keys": keys}

                    def case(config=config, dim=dim, direction=direction, fields=fields, **more):
                        return Case("gdpa", direction, generation, dim, build_pass, config, **fields, **more)  # noqa: B023

                    yield case()
                    if dim < 128:
                        continue
                    if fields["ragged"]:
                        yield case(short=True)
                    for name in KERNEL_ACTIVATIONS:
                        if name != Case.activation and keys is not None:
                            yield case(activation=name)
                    if keys is not None:
                        yield case(dtype="float16")
                        for share in {0, 4} - {config.polynomial}:
                            yield case(dataclasses.replace(config, polynomial=share), activation="gelu")


def attention() -> Iterator[Case]:
    """The default configs of window and seed attention for every head width; at the widest also float16 and a full
    window; and seeds for one unit and for two.
    """
    for generation in target.GENERATIONS:
        chip = target.Target(generation, 0)
        for dim, direction in itertools.product(launch.DIMS, ("forward", "dq", "dkv")):

            def case(operator, keys, dim=dim, direction=direction, chip=chip, generation=generation, **fields):
                config = launch.configs_for(operator, chip, jnp.dtype("bfloat16"), dim, keys, "softmax")[direction]
                return Case(operator, direction, generation, dim, build_pass, config, activation="softmax", **fields)

            yield case("window_attention", 201, window=(100, 100))
            yield case("seed_attention", 64, seeds=64)
            if dim == 128:
                yield case("window_attention", 201, window=(100, 100), dtype="float16")
                yield case("window_attention", None, window=(ROWS, 0))
                yield case("seed_attention", 256, seeds=256)


def block() -> Iterator[Case]:
    """The block for every head width; at the widest also float16, keys that need a mask, and erf."""
    for generation in target.GENERATIONS:
        for dim in launch.DIMS:

            def case(dim=dim, generation=generation, dtype="bfloat16", **fields):
                chip = target.Target(generation, 0)
                activation = fields.get("activation", Case.activation)
                config = block_mosaic.config_for(chip, HEADS, dim, jnp.dtype(dtype).itemsize, activation)
                assert config is not None
                return Case("gdpa_block", "forward", generation, dim, build_block, config, dtype, **fields)

            yield case()
            if dim == 128:
                yield case(dtype="float16")
                yield case(activation="gelu")
                yield case(keys=200, ragged=True)


GENERATORS = (gdpa, block, attention)


def cases(chip: Chip) -> tuple[Case, ...]:
    """The cases for this chip, in the order of `GENERATORS`.

    Raises:
      ValueError: two cases have the same name.
    """
    found = [case for generator in GENERATORS for case in generator() if case.generation == chip.generation]
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"catalogue: more than one case has the name {', '.join(twice)}")
    return tuple(found)
