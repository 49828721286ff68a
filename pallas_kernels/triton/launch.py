"""The passes of the Triton kernels as functions of JAX arrays: block sizes, items, and the launch.

All three operators call these two functions. They differ only in which side stays, the score function and the range of
the streamed rows.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import vary_like
from pallas_kernels.mosaic.schedule import Side
from pallas_kernels.triton import interpreter, schedule
from pallas_kernels.triton.target import Target, kernels


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is known of a call when it is traced.

    Attributes:
      chip: to build for.
      activation: a name of `pallas_kernels.activations`, or "softmax".
      scale: factor of the scores.
      value_scale: factor of the output.
      window: (left, right) key rows that a query meets, both inclusive; None for all of its example.
      shared: whether q holds queries that all examples share, ``[seeds, heads, dim]``; the side of the queries then
        counts them once for each example.
    """

    chip: Target
    activation: str
    scale: float
    value_scale: float = 1.0
    window: tuple[int, int] | None = None
    shared: bool = False

    def constants(self, rows: int, *, keys_stay: bool = False) -> dict[str, Any]:
        """Constants of a kernel; `rows` is no less than the longest example."""
        left, right = (0, 0) if self.window is None else (min(side, rows) for side in self.window)
        if keys_stay:
            left, right = right, left
        return {
            "SCALE": self.scale,
            "VALUE_SCALE": self.value_scale,
            "ACTIVATION": self.activation,
            "LEFT": left,
            "RIGHT": right,
            "WINDOWED": self.window is not None,
            "SHARED": self.shared,
        }


def forward(
    problem: Problem,
    q: Float[Array, "q_rows heads dim"],
    k: Float[Array, "key_rows heads dim"],
    v: Float[Array, "key_rows heads dim"],
    queries: Side,
    keys: Side,
    *,
    balance: bool,
) -> tuple[Float[Array, "rows heads dim"], Float[Array, "rows heads"] | None]:
    """Outputs, one for each row of `queries` in the dtype of q, and a softmax's log-sum-exps to base 2, float32.

    Rows that no example owns are zero in both. `balance`: see `schedule.items`.
    """
    _, heads, dim = q.shape
    sizes = problem.chip.block("forward", dim)
    items = schedule.items(queries, keys, item_rows=sizes.rows, balance=balance)
    outputs = {"out": jax.ShapeDtypeStruct((queries.rows, heads, dim), q.dtype)}
    absent = {"log_sum": None}
    if problem.activation == "softmax":
        absent = {}
        outputs["log_sum"] = jax.ShapeDtypeStruct((queries.rows, heads), jnp.float32)
    arrays = {"items": items, "q": q, "k": k, "v": v} | absent
    constants = problem.constants(k.shape[0])
    out, *log_sum = _launch(problem.chip, "forward", arrays, outputs, constants, sizes)
    return out, log_sum[0] if log_sum else None


def grad_queries(
    problem: Problem,
    q: Float[Array, "q_rows heads dim"],
    k: Float[Array, "key_rows heads dim"],
    v: Float[Array, "key_rows heads dim"],
    d_out: Float[Array, "rows heads dim"],
    softmax: tuple[Float[Array, "rows heads"], Float[Array, "rows heads"]] | tuple[None, None],
    queries: Side,
    keys: Side,
    *,
    balance: bool,
    dtype: jnp.dtype,
) -> Float[Array, "rows heads dim"]:
    """Gradient of the queries in `dtype`, one for each row of `queries`; `softmax` is log-sum-exp and delta."""
    _, heads, dim = q.shape
    sizes = problem.chip.block("dq", dim)
    items = schedule.items(queries, keys, item_rows=sizes.rows, balance=balance)
    outputs = {"x_gradient": jax.ShapeDtypeStruct((queries.rows, heads, dim), dtype)}
    arrays = {"items": items, "own_x": q, "own_y": d_out, "other_x": k, "other_y": v}
    arrays |= {"log_sum": softmax[0], "delta": softmax[1], "y_gradient": None}
    constants = problem.constants(k.shape[0]) | {"KEYS_STAY": False}
    return _launch(problem.chip, "backward", arrays, outputs, constants, sizes)[0]


def grad_keys(
    problem: Problem,
    q: Float[Array, "q_rows heads dim"],
    k: Float[Array, "key_rows heads dim"],
    v: Float[Array, "key_rows heads dim"],
    d_out: Float[Array, "rows heads dim"],
    softmax: tuple[Float[Array, "rows heads"], Float[Array, "rows heads"]] | tuple[None, None],
    queries: Side,
    keys: Side,
    *,
    balance: bool,
) -> tuple[Float[Array, "key_rows heads dim"], Float[Array, "key_rows heads dim"]]:
    """Gradients of keys and values in their dtype; `softmax` is log-sum-exp and delta."""
    sizes = problem.chip.block("dkv", q.shape[-1])
    items = schedule.items(keys, queries, item_rows=sizes.rows, balance=balance)
    outputs = {name: jax.ShapeDtypeStruct(k.shape, k.dtype) for name in ("x_gradient", "y_gradient")}
    arrays = {"items": items, "own_x": k, "own_y": v, "other_x": q, "other_y": d_out}
    arrays |= {"log_sum": softmax[0], "delta": softmax[1]}
    constants = problem.constants(k.shape[0], keys_stay=True) | {"KEYS_STAY": True}
    dk, dv = _launch(problem.chip, "backward", arrays, outputs, constants, sizes)
    return dk, dv


def _launch(chip, name, arrays, outputs, constants, sizes) -> tuple[jax.Array, ...]:
    """Runs a kernel, one program for each item and head, on the GPU or in the interpreter."""
    out_type = tuple(outputs.values())
    items: Int[Array, "items fields"] = arrays["items"]
    _, heads, dim = out_type[0].shape
    programs = items.shape[0] * heads
    constants |= {"HEADS": heads, "DIM": dim, "ROWS": sizes.rows, "TILE": sizes.tile, "INTERPRETED": chip.interpreted}
    kernel = getattr(kernels(chip.interpreted), name)
    given = [parameter for parameter, array in arrays.items() if array is not None]
    if chip.interpreted:

        def call(*operands):
            operands = dict.fromkeys(arrays) | dict(zip(given, map(np.asarray, operands), strict=True))
            described = {parameter: (x.shape, x.dtype) for parameter, x in outputs.items()}
            return interpreter.run(kernel, operands, described, constants, programs)

        results = jax.pure_callback(call, out_type, *(arrays[parameter] for parameter in given))
    else:
        import jax_triton  # pyright: ignore[reportMissingImports]  # an extra

        results = jax_triton.triton_call(
            kernel=kernel,
            out_type=out_type,
            grid=(programs,),
            name=f"kunlun_{name}",
            num_warps=sizes.warps,
            num_stages=sizes.stages,
            compute_capability=chip.capability,
            **arrays,
            **constants,
        )
    return vary_like(arrays["items"], *results)
