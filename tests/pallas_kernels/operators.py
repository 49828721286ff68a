"""The three operators as the contract sees them: random operands, the call, and a definition to compare with.

The definitions here are written example by example on plain slices, without a mask or a padded array, so that they
share nothing with the implementations under test, the `reference` ones included.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import jagged
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.operators.gdpa import api as gdpa_api
from pallas_kernels.operators.gdpa import block, block_mosaic, norms
from pallas_kernels.operators.gdpa import reference as gdpa_reference
from pallas_kernels.operators.seed_attention import api as seed_api
from pallas_kernels.operators.seed_attention import reference as seed_reference
from pallas_kernels.operators.window_attention import api as window_api
from pallas_kernels.operators.window_attention import reference as window_reference

HEADS, DIM, KEYS, SEEDS = 2, 4, 5, 3
# Empty, single, around one and several row blocks, around a tile, long; empty ones in front, between and at the end.
LENGTHS = (0, 1, 7, 8, 9, 31, 32, 33, 0, 0, 100, 64, 5, 0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A packed batch: offsets as JAX arrays, and as tuples for the definitions.

    Attributes:
      lengths: of the examples.
      spare: rows after the last example.
      gaps: rows after each example beside those that align the next one, multiples of 8; empty: none.
    """

    lengths: tuple[int, ...]
    spare: int = 24
    gaps: tuple[int, ...] = ()

    @property
    def splits(self) -> np.ndarray:
        occupied = jagged.aligned(np.array(self.lengths)) + np.array(self.gaps or 0)
        return np.concatenate([[0], np.cumsum(occupied)]).astype(np.int32)

    @property
    def rows(self) -> int:
        return int(self.splits[-1]) + self.spare

    @property
    def offsets(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.splits), jnp.asarray(self.lengths, jnp.int32)

    @property
    def others(self) -> "Layout":
        """Another layout of as many rows: each example has the length, and the gap, of the one before it."""
        return Layout(self.lengths[-1:] + self.lengths[:-1], self.spare, self.gaps[-1:] + self.gaps[:-1])

    @property
    def mask(self) -> np.ndarray:
        """Rows that hold an event, counted one by one."""
        mask = np.zeros(self.rows, bool)
        for start, length in zip(self.splits, self.lengths, strict=False):
            mask[start : start + length] = True
        return mask

    def random(
        self, rng: np.random.Generator, dtype, poison: float = np.nan, dim: int = DIM, heads: int = HEADS
    ) -> jax.Array:
        """Random rows whose padding is poisoned."""
        values = rng.standard_normal((self.rows, heads, dim))
        values[~self.mask] = poison
        return jnp.asarray(values, dtype)


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator with its options fixed.

    Attributes:
      name: for test ids.
      call: (implementation, layout, operands) -> output.
      reference: (layout, operands, upcast) -> output of the reference implementation.
      define: (layout, operands) -> output by definition.
      operands: (layout, rng, dtype) -> operands.
      jagged: for each operand, then the output: whether it is packed rows.
      own_keys: whether packed k and v have ``layout.others`` for their layout.
      dim: width of a head.
      shared_queries: whether q is the same for every example.
    """

    name: str
    call: Callable
    reference: Callable
    define: Callable
    operands: Callable
    jagged: tuple[bool, ...]
    own_keys: bool = False
    dim: int = DIM
    shared_queries: bool = False

    def layouts(self, layout: Layout) -> tuple[Layout | None, ...]:
        """Layout of the output, q, k and v; None for what is not packed."""
        keys = layout.others if self.own_keys else layout
        packed = self.jagged[-1:] + self.jagged[:-1]
        return tuple(
            x if is_packed else None for x, is_packed in zip((layout, layout, keys, keys), packed, strict=True)
        )

    def cotangent(self, layout: Layout, rng: np.random.Generator, dtype) -> jax.Array:
        """Random cotangent of the output, its padding poisoned."""
        if self.jagged[-1]:
            return layout.random(rng, dtype, dim=self.dim)
        return jnp.asarray(rng.standard_normal((len(layout.lengths), SEEDS, HEADS, self.dim)), dtype)


def with_gradients(function: Callable, layout: Layout, operands, cotangent):
    """Output and gradients of ``function(layout, operands)``, compiled; float64 without optimisation, to save time."""
    return compiled(function, layout, cotangent.dtype == jnp.float64)(operands, cotangent)


def compiled(function: Callable, layout: Layout, fast: bool = False) -> Callable:
    """(operands, cotangent) -> output and gradients of ``function(layout, operands)``; not optimised if `fast`."""

    def run(operands, cotangent):
        out, pullback = jax.vjp(lambda *operands: function(layout, operands), *operands)
        return (out, *pullback(cotangent))

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0} if fast else None)


@functools.cache
def _definition(operator, layout):
    """The definition is unrolled over the examples: compiled once for all implementations and narrow dtypes."""
    return compiled(operator.define, layout, True)


@functools.cache
def problem(operator: Operator, layout: Layout, dtype, seed: int = 20):
    """Random operands, a cotangent, and what the definition gives for them in at least float32."""
    rng = np.random.default_rng(seed)
    operands, cotangent = operator.operands(layout, rng, dtype), operator.cotangent(layout, rng, dtype)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype.itemsize == 2 else x, (operands, cotangent))
    return operands, cotangent, tuple(np.asarray(x) for x in _definition(operator, layout)(*exact))


@functools.cache
def plain(operator: Operator, layout: Layout, dtype, seed: int = 20):
    """What the reference gives for the same where it computes in `dtype`: the error that 16 bits may have."""
    operands, cotangent, _ = problem(operator, layout, dtype, seed)
    results = with_gradients(lambda *a: operator.reference(*a, upcast=False), layout, operands, cotangent)
    return tuple(np.asarray(x) for x in results)


def _segments(layout, values):
    return [values[start : start + n] for start, n in zip(layout.splits, layout.lengths, strict=False)]


def _pack(layout, segments, like):
    """Segments back in their places; all other rows zero."""
    out = jnp.zeros_like(like)
    for start, n, segment in zip(layout.splits, layout.lengths, segments, strict=False):
        out = out.at[start : start + n].set(segment)
    return out


def _softmax(scores):
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@functools.cache
def gdpa(
    activation: str = "gelu",
    pre_scale: float = 0.7,
    post_scale: float = 1.3,
    keys: str = "dense",
    dim: int = DIM,
    dense_keys: int = KEYS,
) -> Operator:
    """`keys` is dense, jagged (with lengths of their own) or self (the queries' lengths)."""
    options = {"activation": activation, "pre_scale": pre_scale, "post_scale": post_scale}

    def keys_of(layout):
        return layout.others if keys == "jagged" else layout

    def call(implementation, layout, operands):
        offsets = layout.offsets + (layout.others.offsets if keys == "jagged" else ())
        return gdpa_api.gdpa(*operands, *offsets, implementation=implementation, **options)

    def reference(layout, operands, upcast):
        if keys == "dense":
            return gdpa_reference.gdpa(*operands, *layout.offsets, upcast=upcast, **options)
        return gdpa_reference.gdpa_jagged(
            *operands, *layout.offsets, *keys_of(layout).offsets, upcast=upcast, **options
        )

    def define(layout, operands):
        q, k, v = operands
        if keys != "dense":
            k, v = (_segments(keys_of(layout), x) for x in (k, v))
        out = []
        for b, rows in enumerate(_segments(layout, q)):
            scores = activation_by_name(activation).value(pre_scale * jnp.einsum("qhd,khd->hqk", rows, k[b]))
            out.append(post_scale * jnp.einsum("hqk,khd->qhd", scores, v[b]))
        return _pack(layout, out, q)

    def operands(layout, rng, dtype):
        if keys != "dense":
            return tuple(x.random(rng, dtype, dim=dim) for x in (layout, keys_of(layout), keys_of(layout)))
        shape = (len(layout.lengths), dense_keys, HEADS, dim)
        k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
        return layout.random(rng, dtype, dim=dim), k, v

    name = f"gdpa-{activation}" if keys == "dense" else f"gdpa-{keys}-{activation}"
    name += "" if dim == DIM else f"-d{dim}"
    packed = (True, keys != "dense", keys != "dense", True)
    return Operator(name, call, reference, define, operands, packed, keys == "jagged", dim)


@functools.cache
def gdpa_block(activation: str = "gelu", dim: int = DIM, keys: int = KEYS) -> Operator:
    """The personalized FFN's block; `call` fuses the norms, where another implementation has no say on padding."""
    options = {"activation": activation, "pre_scale": dim**-0.5, "post_scale": 0.7}

    def call(implementation, layout, operands):
        assert block_mosaic.refusal(*operands, *layout.offsets) is None
        return block.gdpa_block(*operands, *layout.offsets, implementation=implementation, **options)

    def reference(layout, operands, upcast):
        q, k, v = operands
        normed = norms.layer_norm(q)
        out = gdpa_reference.gdpa(normed, k, v, *layout.offsets, upcast=upcast, **options)
        return norms.rms_norm(out + normed) + q

    def define(layout, operands):
        q, k, v = operands
        out = []
        for b, rows in enumerate(_segments(layout, q)):
            normed = rows - rows.mean((1, 2), keepdims=True)
            normed = normed / jnp.sqrt((normed**2).mean((1, 2), keepdims=True) + 1e-5)
            scores = activation_by_name(activation).value(dim**-0.5 * jnp.einsum("qhd,khd->hqk", normed, k[b]))
            z = 0.7 * jnp.einsum("hqk,khd->qhd", scores, v[b]) + normed
            out.append(z / jnp.sqrt((z**2).mean((1, 2), keepdims=True) + 1e-5) + rows)
        return _pack(layout, out, q)

    def operands(layout, rng, dtype):
        shape = (len(layout.lengths), keys, HEADS, dim)
        k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
        return layout.random(rng, dtype, dim=dim), k, v

    packed = (True, False, False, True)
    return Operator(f"block-{activation}-d{dim}-k{keys}", call, reference, define, operands, packed, dim=dim)


@functools.cache
def window_attention(left: int, right: int, dim: int = DIM, groups: int = 1) -> Operator:
    """`groups` heads of queries read one head of keys."""

    def call(implementation, layout, operands):
        return window_api.window_attention(
            *operands, *layout.offsets, window=(left, right), implementation=implementation
        )

    def reference(layout, operands, upcast):
        return window_reference.window_attention(
            *operands, *layout.offsets, window=(left, right), scale=dim**-0.5, upcast=upcast
        )

    def define(layout, operands):
        out = []
        for q, k, v in zip(*(_segments(layout, x) for x in operands), strict=True):
            if len(q):
                k, v = (jnp.repeat(x, groups, axis=1) for x in (k, v))
                inside = np.array([[-left <= j - i <= right for j in range(len(q))] for i in range(len(q))])
                scores = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
                out.append(jnp.einsum("hqk,khd->qhd", _softmax(jnp.where(inside[None], scores, -jnp.inf)), v))
            else:
                out.append(q)
        return _pack(layout, out, operands[0])

    def operands(layout, rng, dtype):
        return tuple(layout.random(rng, dtype, dim=dim, heads=HEADS // n) for n in (1, groups, groups))

    name = f"window-{left}-{right}" + ("" if dim == DIM else f"-d{dim}") + ("" if groups == 1 else f"-g{groups}")
    return Operator(name, call, reference, define, operands, (True, True, True, True), dim=dim)


@functools.cache
def seed_attention(dim: int = DIM, own: bool = False) -> Operator:
    """With `own`, each example has its own queries."""

    def call(implementation, layout, operands):
        return seed_api.seed_attention(*operands, *layout.offsets, implementation=implementation)

    def reference(layout, operands, upcast):
        return seed_reference.seed_attention(*operands, *layout.offsets, scale=dim**-0.5, upcast=upcast)

    def define(layout, operands):
        q, k, v = operands
        out = []
        for b, (keys, values) in enumerate(zip(_segments(layout, k), _segments(layout, v), strict=True)):
            seeds = q[b] if own else q
            if len(keys):
                scores = jnp.einsum("shd,khd->hsk", seeds, keys) / np.sqrt(dim)
                out.append(jnp.einsum("hsk,khd->shd", _softmax(scores), values))
            else:
                out.append(jnp.zeros_like(seeds))
        return jnp.stack(out)

    def operands(layout, rng, dtype):
        shape = (SEEDS, HEADS, dim)
        q = jnp.asarray(rng.standard_normal((len(layout.lengths), *shape) if own else shape), dtype)
        return q, layout.random(rng, dtype, dim=dim), layout.random(rng, dtype, dim=dim)

    name = ("seed-own" if own else "seed") + ("" if dim == DIM else f"-d{dim}")
    packed = (False, True, True, False)
    return Operator(name, call, reference, define, operands, packed, dim=dim, shared_queries=not own)
