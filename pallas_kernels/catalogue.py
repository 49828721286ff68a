"""Every kernel in the configs that are in use, as cases that `pallas_kernels.compile_check` compiles without a GPU.

A new kernel adds a function that yields its cases to `GENERATORS`. A case's `build` is a function of a module, not a
lambda, for the case travels to another process.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from pallas_kernels.gdpa import mosaic
from pallas_kernels.mosaic import schedule, target
from pallas_kernels.mosaic.activations import KERNEL_ACTIVATIONS
from pallas_kernels.mosaic.chips import Chip
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.score import pointwise


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel to compile.

    Attributes:
      operator: "gdpa", "window_attention" or "seed_attention".
      direction: "forward", "dq" or "dkv".
      generation: the chips that it is for, see `Chip.generation`.
      dim: width of a head.
      build: (case, chip) -> the function to jit, and a ShapeDtypeStruct for each of its arguments.
      config: block sizes.
      dtype: name of the operands' dtype.
      activation: a name of `pallas_kernels.activations`.
      ragged: the streamed rows need not be a multiple of the block.
      keys: dense keys of an example.
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
    keys: int = 256

    @property
    def name(self) -> str:
        """What tells the case from all others; of the config, block and stages, and what is not the default."""
        generation = _module(self.generation)
        parts = [self.operator, generation, self.direction, f"d{self.dim}", self.dtype, self.activation]
        parts += [f"block{self.config.block}", f"stages{self.config.stages}"]
        for field in dataclasses.fields(self.config):
            value = getattr(self.config, field.name)
            if field.name not in ("block", "stages") and value != field.default:
                parts.append(f"{field.name}{int(value)}")
        if self.keys != Case.keys:
            parts.append(f"keys{self.keys}")
        if self.ragged:
            parts.append("ragged")
        return "-".join(parts)


BATCH, HEADS, ROWS = 64, 4, 64 * 512
"""Sizes of every case; no kernel is compiled for them in particular, so small ones do."""


def build_gdpa(case: Case, chip: Chip) -> tuple[Callable, tuple]:
    """Jagged queries against dense keys, one pass of the streaming kernel."""
    kernel = mosaic.kernel_of(target.Target(_module(case.generation), chip.multiprocessors))

    def run(row_splits, lengths, q, k, v, grad):
        queries, keys = schedule.packed(row_splits, lengths, ROWS), schedule.dense(BATCH, case.keys)
        k, v = (x.reshape(BATCH * case.keys, HEADS, case.dim) for x in (k, v))
        own, other = (keys, queries) if case.direction == "dkv" else (queries, keys)
        item_rows = case.config.units * case.config.run * kernel.TILE_ROWS
        work = schedule.work_list(own, other, item_rows=item_rows, balance=case.direction == "dkv")
        stationary, streamed, sums = {
            "forward": ((q,), (k, v), ("value",)),
            "dq": ((q, grad), (k, v), ("key",)),
            "dkv": ((k, v), (q, grad), ("key", "value")),
        }[case.direction]
        return kernel.attend(
            stationary,
            streamed,
            work,
            score=pointwise(case.activation, 1.0, 1.0),
            sums=sums,
            ragged=case.ragged,
            config=case.config,
            processors=chip.multiprocessors,
        )

    packed = jax.ShapeDtypeStruct((ROWS, HEADS, case.dim), jnp.dtype(case.dtype))
    dense = jax.ShapeDtypeStruct((BATCH, case.keys, HEADS, case.dim), jnp.dtype(case.dtype))
    splits, lengths = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (BATCH + 1, BATCH))
    return run, (splits, lengths, packed, dense, dense, packed)


def _module(generation: str) -> str:
    """``"sm_90a"``, a compiler's name for a generation, as the name of the module with its kernel."""
    return generation.replace("_", "").removesuffix("a")


def gdpa() -> Iterator[Case]:
    """The default configs of gdpa: every width of a head with dense keys that are kept in shared memory and with jagged
    ones; at the widest also float16, every activation, and with half of the scores by polynomials or none.

    dk and dv stream the jagged queries, so they are always masked.
    """
    for generation in ("sm_90a", "sm_100a"):
        for dim in mosaic.DIMS:
            for keys in (256, None):
                chip = target.Target(_module(generation), 0)
                configs = mosaic.configs_for(chip, jnp.dtype("bfloat16"), dim, keys, Case.activation)
                for direction in ("forward", "dq", "dkv"):
                    if direction == "dkv" and keys is None:
                        continue  # the same as with dense keys
                    config = configs[direction]
                    fields = {"ragged": keys is None or direction == "dkv", "keys": keys or 200}

                    def case(config=config, dim=dim, direction=direction, fields=fields, **more):
                        return Case("gdpa", direction, generation, dim, build_gdpa, config, **fields, **more)  # noqa: B023

                    yield case()
                    if dim < 128:
                        continue
                    for name in KERNEL_ACTIVATIONS:
                        if name != Case.activation and keys is not None:
                            yield case(activation=name)
                    if keys is not None:
                        yield case(dtype="float16")
                        for share in {0, 4} - {config.polynomial}:
                            yield case(dataclasses.replace(config, polynomial=share), activation="gelu")


GENERATORS = (gdpa,)


def cases(chip: Chip) -> tuple[Case, ...]:
    """The cases for this chip, in the order of `GENERATORS`.

    Raises:
      ValueError: two cases have one name.
    """
    found = [case for generator in GENERATORS for case in generator() if case.generation == chip.generation]
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"catalogue: more than one case has the name {', '.join(twice)}")
    return tuple(found)
