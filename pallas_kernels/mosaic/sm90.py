"""The streaming kernel for Hopper: one kernel for the forward pass, for dq, and for dk with dv.

A block has up to two compute warpgroups and one that loads. Each compute warpgroup keeps a stationary tile ``a`` of 64
rows (in the backward passes also ``b``), and the rows of the same example stream past it in tiles ``x`` and ``y``:

    S = a x^T                       scores, [64, block]
    weights, derivative = score(S)
    D = b y^T                       backward only: gradient of the weights; dS = derivative D
    value += weights y              forward: O from (q; k, v).   dk, dv: dV from (k, v; q, dO)
    key   += dS x                   dq: dQ from (q, dO; k, v).   dk, dv: dK from (k, v; q, dO)

So the three passes differ in what stays, what streams, and which sums are kept. Blocks are persistent: each walks its
share of the work list (`pallas_kernels.mosaic.schedule`), and the loading warpgroup runs ahead across items. With
``config.run > 1`` the streamed tiles stay in shared memory for a run of stationary tiles.

In the forward pass of a softmax the weights are relative to the largest score of their row so far; the sum O is then
carried in registers and rescaled when a larger one comes. The backward passes take the log-sum-exp and delta of each
row of queries, which stay or stream with it. With a window each unit computes with the tiles that its own rows reach
and skips the others; scores are masked in the tiles at the window's edges.
"""

import dataclasses
import functools

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import streaming, target
from pallas_kernels.mosaic.config import Sm90Config, check_room
from pallas_kernels.mosaic.plan import Operands, Slots, tiled_smem
from pallas_kernels.mosaic.sm90_compute import TILE_ROWS, Plan, Scratch, compute
from pallas_kernels.mosaic.streaming import STAGED

COMPUTE_REGISTERS, MEMORY_REGISTERS = 240, 24
"""Registers per thread with two units: together no more than `streaming.LAUNCH_REGISTERS` allows."""


def shared_memory(
    dim: int,
    itemsize: int,
    *,
    backward: bool,
    outputs: int,
    config: Sm90Config,
    out_itemsize: int | None = None,
    softmax: bool = False,
) -> int:
    """Bytes of shared memory that the tiles of a kernel take, barriers aside.

    Args:
      dim: width of a head.
      itemsize: bytes of an operand's element.
      backward: whether there are two stationary tiles.
      outputs: how many sums are kept.
      config: block sizes.
      out_itemsize: bytes of a result's element, `itemsize` unless given.
      softmax: whether there are statistics of rows, in float32.
    """
    stationary = config.units * config.stationary_stages * (2 if backward else 1) * TILE_ROWS
    streamed = 2 * config.stages * config.block
    weights = config.units * TILE_ROWS * config.block * (2 if backward else 1) if config.weights_in_smem else 0
    staging = config.units * outputs * TILE_ROWS * dim * (out_itemsize or itemsize)
    # Two statistics that stay or stream in a backward pass, or the one that a forward pass makes.
    slots = config.stages * config.block if outputs == 2 else config.units * config.stationary_stages * TILE_ROWS
    statistics = 4 * (2 * slots if backward else config.units * 2 * STAGED) if softmax else 0
    return itemsize * (dim * (stationary + streamed) + weights) + staging + statistics


def _check(plan: Plan) -> None:
    config = plan.config
    if plan.other_statistics and config.block % 32:
        raise ValueError(f"attend: config.block={config.block} streams statistics; it must be a multiple of 32")
    chip = target.current()
    interpreted = isinstance(chip, target.Target) and chip.interpreted
    needed = shared_memory(
        plan.dim,
        plan.dtype.itemsize,
        backward=plan.backward,
        outputs=len(plan.sums),
        # The interpreter keeps in shared memory, of which it has plenty, what the chip keeps in registers.
        config=dataclasses.replace(config, weights_in_smem=False) if interpreted else config,
        out_itemsize=plan.out_dtype.itemsize,
        softmax=plan.softmax,
    )
    check_room(config, plan.dim, shared_memory=needed)


def _run(plan: Plan, arrays: Operands) -> None:
    config, units = plan.config, plan.config.units

    def tiled(shape, dtype=plan.dtype):
        return tiled_smem(shape, dtype, min(128, shape[-1] * jnp.dtype(dtype).itemsize))

    scratch = Scratch(
        out=[tiled((units, TILE_ROWS, plan.dim), plan.out_dtype) for _ in plan.sums],
        log_sums=plgpu.SMEM((units, 2, STAGED), jnp.float32) if plan.online else None,
        weights=[tiled((units, TILE_ROWS, config.block)) for _ in plan.sums if config.weights_in_smem],
        turn=plgpu.Barrier(num_arrivals=2) if config.ping_pong and units == 2 else None,
    )
    pl.run_scoped(functools.partial(_kernel, plan, arrays), Slots.of(plan, tiled), scratch, collective_axes="wg")


def _kernel(plan: Plan, arrays: Operands, slots: Slots, scratch: Scratch) -> None:
    wg, units = lax.axis_index("wg"), plan.config.units

    @pl.when(wg == units)
    def _load():
        if units == 2:  # with one, the launch gives both the maximum
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
        streaming.load(plan, arrays, slots, aligned=lambda row: pl.multiple_of(row, 8), empty=True)

    @pl.when(wg < units)
    def _compute():
        if units == 2:
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        compute(wg, plan, arrays, slots, scratch)


attend = functools.partial(streaming.attend, Plan, _check, _run, 0)
"""Runs the kernel, see `streaming.attend`."""
