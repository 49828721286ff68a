"""The streaming kernel for Blackwell: one kernel for the forward pass, for dq, and for dk with dv.

It computes what `pallas_kernels.mosaic.sm90` does, with this chip's tensor cores, which are fed by single threads
and keep scores and sums in tensor memory:

    S = a x^T                       scores, [128, block] float32
    D = b y^T                       backward only: gradient of the weights
    weights, dS = score(S, D)       16 bit, written over S and over D
    value += weights y              forward: O from (q; k, v).   dk, dv: dV from (k, v; q, dO)
    key   += dS x                   dq: dQ from (q, dO; k, v).   dk, dv: dK from (k, v; q, dO)

A unit is a stationary tile of 128 rows with a compute warpgroup, which turns scores into weights and writes out the
sums, and a warp that issues its products. The units share only the streamed tiles, so while one computes weights
the tensor cores work for the other. One more warp loads. Blocks are persistent: each walks its share of the work list
(`pallas_kernels.mosaic.schedule`), and the loading and the issuing warps run ahead across items.

In a backward pass two compute warpgroups may share one unit (`Sm100Config.warpgroups`), each with half of the columns:
one has too few registers for 128 x 128 scores. They turn S into the weights and the derivative before D is there, and
all weights take the place of D, so S and D have barriers of their own:

    warpgroups begin S(j)       products with the weights of j - 1, then D(j)
    and finish with D(j)        S(j + 1)

The forward pass of a softmax keeps a maximum and a sum of each row in registers. Where the maximum rises much, the sums
in tensor memory are rescaled before the next product is added, so this pass waits for the previous product. The
backward passes get what the rows' softmax needs as statistics. With a window a unit skips the streamed tiles that none
of its rows reaches, and masks those that not all of them reach.

The work of the issuing warps is in `pallas_kernels.mosaic.sm100_issue`, that of the compute warpgroups in
`sm100_compute`.
"""

import functools

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
from jax import lax

from pallas_kernels.mosaic import streaming
from pallas_kernels.mosaic.config import Sm100Config, check_room
from pallas_kernels.mosaic.plan import Operands, Slots
from pallas_kernels.mosaic.sm100_compute import compute
from pallas_kernels.mosaic.sm100_issue import issue
from pallas_kernels.mosaic.sm100_plan import SWIZZLE, Plan, Scratch, tensor_barrier
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS

COMPUTE_REGISTERS, MEMORY_REGISTERS = 208, 88
"""Registers per thread with two compute warpgroups: together no more than `streaming.LAUNCH_REGISTERS` allows."""


def shared_memory(
    dim: int,
    itemsize: int,
    *,
    backward: bool,
    config: Sm100Config,
    outputs: int = 1,
    statistics: int = 0,
    online: bool = False,
    out_itemsize: int | None = None,
) -> int:
    """Bytes of shared memory that the tiles of a kernel take, barriers aside.

    Args:
      dim: width of a head.
      itemsize: bytes per element of the operands.
      backward: whether there are two stationary arrays.
      config: block sizes.
      outputs: how many sums are kept; with two, statistics are those of the streamed rows.
      statistics: how many there are per row.
      online: whether running maxima are kept.
      out_itemsize: bytes per element of the results, that of the operands unless given.
    """
    stationary = config.units * config.stationary_stages * (2 if backward else 1) * TILE_ROWS * dim
    streamed = 2 * config.stages * config.block * dim
    staging = config.units * config.warpgroups * TILE_ROWS * min(dim * (out_itemsize or itemsize), SWIZZLE)
    own_rows, other_rows = config.units * config.stationary_stages * TILE_ROWS, config.stages * config.block
    vectors = statistics * (other_rows if outputs == 2 else own_rows) + (config.units * TILE_ROWS if online else 0)
    # For the reductions of running maxima the compiler takes some bytes, aligned to 1024.
    return itemsize * (stationary + streamed) + staging + 4 * vectors + (1024 if online else 0)


def tensor_memory(dim: int, *, backward: bool, outputs: int, config: Sm100Config) -> int:
    """Columns of tensor memory that scores and sums take; each holds 128 rows of 32 bits."""
    scores = config.score_stages * config.block * (2 if backward else 1)
    return config.units * (scores + outputs * dim)


def _check(plan: Plan) -> None:
    if plan.shared_unit and not plan.backward:
        raise ValueError("attend: config.warpgroups=2 is for backward passes; it must be 1")
    needed = shared_memory(
        plan.dim,
        plan.dtype.itemsize,
        backward=plan.backward,
        config=plan.config,
        outputs=len(plan.sums),
        statistics=plan.statistics,
        online=plan.online,
        out_itemsize=plan.out_dtype.itemsize,
    )
    columns = tensor_memory(plan.dim, backward=plan.backward, outputs=len(plan.sums), config=plan.config)
    check_room(plan.config, plan.dim, shared_memory=needed, tensor_memory=columns)


def _run(plan: Plan, arrays: Operands) -> None:
    slots = Slots.of(plan, plan.tiled, tensor_barrier)
    pl.run_scoped(functools.partial(_kernel, plan, arrays), slots, Scratch.of(plan), collective_axes="wg")


def _kernel(plan: Plan, arrays: Operands, slots: Slots, scratch: Scratch) -> None:
    units, warpgroups = plan.config.units, plan.config.warpgroups

    def load():
        # Warp-level code has no `pl.multiple_of`.
        streaming.load(plan, arrays, slots, aligned=lambda row: row & -8, empty=False)

    def serve():
        """What the warpgroup without a unit does."""
        if plan.compute_warpgroups == 2:
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")

        @plgpu.warp_map
        def _warp(warp):
            pl.when(warp == 0)(load)
            for unit in range(units):
                pl.when(warp == unit + 1)(lambda unit=unit: issue(unit, plan, arrays, slots, scratch))

    def compute_in_warpgroup(unit, warpgroup):
        if plan.compute_warpgroups == 2:
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        compute(unit, warpgroup, plan, arrays, slots, scratch)

    # One switch, not a condition per warpgroup, so that nothing is kept, and spilled, for the next condition.
    computing = [
        functools.partial(compute_in_warpgroup, unit, warpgroup)
        for unit in range(units)
        for warpgroup in range(warpgroups)
    ]
    lax.switch(lax.axis_index("wg"), [*computing, serve])


attend = functools.partial(streaming.attend, Plan, _check, _run, 16)
"""Runs the kernel, see `streaming.attend`; the compiler needs 16 bytes for each reduction."""
