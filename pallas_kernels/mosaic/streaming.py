"""What the streaming kernels of all generations share: dealing out the work list, loading and storing tiles.

No warp directs another: each walks the work list by itself and reaches the same tiles in the same order.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.plan import Operands, Plan, Slots, slot_of
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score

LAUNCH_REGISTERS = 168
"""Registers of a thread when three warpgroups are launched: 65536 / 384, a multiple of 8.

Warpgroups can pass registers on to each other (`set_max_registers`) but not make new ones: one that asks for more than
the others have given up waits forever.
"""


def give_free(plan: Plan, slots: Slots, unit) -> None:
    """A unit's readers free all slots before the first load."""
    number = plan.config.stationary_stages
    for slot in range(number):
        for _ in range(plan.own_readers):
            plgpu.barrier_arrive(slots.own_free.at[unit * number + slot])
    for slot in range(plan.config.stages):
        for barrier, readers in zip(slots.free, plan.other_readers, strict=True):
            for _ in range(readers):
                plgpu.barrier_arrive(barrier.at[slot])


def load(plan: Plan, arrays: Operands, slots: Slots, *, aligned: Callable, empty: bool) -> None:
    """What the loading warps do: every tile of this block's items goes into its slot as soon as that is free.

    Args:
      plan: the kernel.
      arrays: what to load.
      slots: where to put it.
      aligned: shows the compiler that a row is a multiple of 8.
      empty: whether to load stationary tiles past which nothing streams, too.
    """
    block, units, stages = plan.config.block, plan.config.units, plan.config.stages
    own_slots = plan.config.stationary_stages

    def load_item(item, head, steps):
        turns, count = plan.tiles_of(item)
        own_rows = [item[field] for field in (schedule.ROW, schedule.OUT_ROW)[: len(arrays.own)]]
        other_rows = [item[field] for field in (schedule.OTHER_ROW, schedule.OTHER_SECOND_ROW)]
        tail = item[schedule.TAIL] if plan.tails else None

        def load_turn(t, first, last, steps):
            own_step, other_step = steps
            for unit in range(units):
                slot = slot_of(own_step, own_slots)
                barrier = unit * own_slots + slot
                starts = [aligned(row + (t * units + unit) * plan.TILE_ROWS) for row in own_rows]
                plgpu.barrier_wait(slots.own_free.at[barrier])
                for start, gmem, smem in zip(starts, arrays.own, slots.own, strict=True):
                    plgpu.copy_gmem_to_smem(
                        gmem.at[pl.ds(start, plan.TILE_ROWS), head], smem.at[unit, slot], slots.own_full.at[barrier]
                    )
                for gmem, smem in zip(arrays.numbers, slots.numbers, strict=True) if plan.own_statistics else ():
                    plgpu.copy_gmem_to_smem(
                        gmem.at[head, pl.ds(starts[1], plan.TILE_ROWS)],
                        smem.at[unit, slot],
                        slots.own_full.at[barrier],
                    )

            def load_head(i, other_step):
                other_head = head if plan.share == 1 else lax.div(head, jnp.int32(plan.share))
                other_head = other_head if plan.group == 1 else head * plan.group + i

                def load_tile(j, other_step):
                    slot = slot_of(other_step, stages)
                    starts = [aligned(row + j * block) for row in other_rows]
                    for i, (smem, full, free) in enumerate(zip(slots.other, slots.full, slots.free, strict=True)):

                        def copy(arrays, start, i=i, smem=smem, full=full):
                            source = arrays[i].at[pl.ds(start, block), other_head]
                            plgpu.copy_gmem_to_smem(source, smem.at[slot], full.at[slot])

                        plgpu.barrier_wait(free.at[slot])
                        if tail is None:
                            copy(arrays.other, starts[i])
                        else:
                            lax.cond(
                                (tail >= 0) & (j == count - 1),
                                lambda copy=copy: copy(arrays.tails, aligned(tail)),
                                lambda copy=copy, i=i: copy(arrays.other, starts[i]),
                            )
                    for gmem, smem in zip(arrays.numbers, slots.numbers, strict=True) if plan.other_statistics else ():
                        plgpu.copy_gmem_to_smem(
                            gmem.at[other_head, pl.ds(starts[1], block)], smem.at[slot], slots.full[1].at[slot]
                        )
                    return other_step + 1

                return lax.fori_loop(0, count if first is True else jnp.where(first, count, 0), load_tile, other_step)

            return own_step + 1, plan.over_heads(load_head, other_step)

        if empty:
            return plan.over_turns(turns, load_turn, steps)
        return lax.cond(count > 0, lambda: plan.over_turns(turns, load_turn, steps), lambda: steps)

    steps = (jnp.int32(0), jnp.int32(0))
    for_each_item(arrays.work, plan.load_columns, plan.heads, plan.blocks, load_item, steps)
    # Every slot has been freed once more than it was filled.
    for slot in range(units * own_slots):
        plgpu.barrier_wait(slots.own_free.at[slot])
    for slot in range(stages):
        for barrier in slots.free:
            plgpu.barrier_wait(barrier.at[slot])


def attend[P: Plan](
    kind: type[P],
    check: Callable[[P], None],
    run: Callable[[P, Operands], None],
    reduction_bytes: int,
    stationary: tuple[Float[Array, "_ heads dim"], ...],
    streamed: tuple[Float[Array, "_ other_heads dim"], Float[Array, "_ other_heads dim"]],
    work: WorkList,
    *,
    score: Score,
    sums: tuple[str, ...],
    ragged: bool,
    config: Config,
    processors: int,
    tails: tuple[Float[Array, "tail_rows other_heads dim"], ...] = (),
    statistics: tuple[Float[Array, "query_heads query_rows"], ...] = (),
    window: tuple[int, int] | None = None,
    out_rows: int | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> tuple[Array, ...]:
    """Runs the streaming kernel of a generation; `sm90.attend` and `sm100.attend` call it.

    Args:
      kind: its plan.
      check: refuses what the kernel cannot do.
      run: allocates its memory and does the work of a block.
      reduction_bytes: shared memory for reductions, which all stay within a warp.
      stationary: ``(a,)`` for the forward pass, ``(a, b)`` for the backward passes, bfloat16 or float16; a is read at
        the items' `schedule.ROW`, b at `schedule.OUT_ROW`.
      streamed: ``(x, y)``; without `tails` their gaps hold no NaN, see `pallas_kernels.mosaic.tails.guarded`. Their
        heads may be fewer or more than those that stay: one number is a multiple of the other, and the heads of a group
        are consecutive.
      work: items of ``config.units * config.run * TILE_ROWS`` rows, made with the `tails.Ends` of `tails` if any.
      score: the score function.
      sums: which sums to keep, ``"value"`` or ``"key"`` or both, in the order of the results.
      ragged: False if the number of streamed rows is known to be a multiple of the block.
      config: block sizes.
      processors: multiprocessors of the chip, the number of persistent blocks.
      tails: those of x and of y, with the same heads, whose zeros nothing masks if the score is pointwise and there is
        no window; none if all tiles come from `streamed`.
      statistics: float32, one per row of queries, for `score.backward`: with one sum, for dq, they stay with ``b``;
        with two, for dk and dv, they stream with ``y``. Gaps may hold NaN, for scores are masked after their use.
      window: ``(below, above)`` as in `schedule.work_list`, which made `work` with it.
      out_rows: rows of the results, those of ``a`` unless given.
      out_dtype: of the sums, that of ``a`` unless given.

    Returns:
      For each of `sums` ``[out_rows, heads, dim]`` with the heads of ``a``; rows that hold nothing are zero. With
      `score.online` the forward pass also gives the log-sum-exps of rows to base 2, float32 ``[heads,
      out_rows]``; `LOWEST` in rows that hold nothing or met nothing.

    Raises:
      ValueError: head counts neither of which divides the other, a config that a softmax or a window cannot have, or
        one that needs more shared or tensor memory than there is.
    """
    plan = kind.of(
        stationary,
        streamed,
        work,
        config=config,
        processors=processors,
        tails=bool(tails),
        statistics=statistics,
        out_rows=out_rows,
        out_dtype=out_dtype,
        score=score,
        sums=sums,
        ragged=ragged,
        window=window,
    )
    check(plan)

    def entry(*refs):
        run(plan, Operands.of(refs, plan))

    return plgpu.kernel(
        entry,
        out_type=plan.results,
        grid=(plan.blocks,),
        grid_names=("processor",),
        num_threads=plan.compute_warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=reduction_bytes),
    )(work.items, work.used, *stationary, *streamed, *tails, *statistics)


def for_each_item(work: WorkList, columns: Sequence[int], heads: int, blocks: int, body: Callable, carry):
    """Runs ``body(item, head, carry) -> carry`` for the items of this block, and returns the last `carry`.

    The pairs of item and head are dealt to the blocks in turn. Everything is read here, hence in the branch of the
    calling warps: warps with few registers would spill values read before it.

    Args:
      work: the work list, in global memory.
      columns: those of `schedule` that the body reads. They are read while the item before is worked on, so that no
        work waits for them; each takes two registers, for this item and for the next one.
      heads: how many; each item is worked on for each.
      blocks: persistent blocks, the size of the grid axis ``"processor"``.
      body: work on one item, given as ``{column: value}``.
      carry: what the body carries from item to item.
    """
    processor = lax.axis_index("processor")
    mine = lax.div(work.used[0] * heads - processor + (blocks - 1), jnp.int32(blocks))

    def read(index):
        # After a block's last item the next one may be past the list's end; what is read in its place is not used.
        item = jnp.minimum(lax.div(index, jnp.int32(heads)), work.items.shape[0] - 1)
        return {column: work.items[item, column] for column in columns}

    def deal(turn, state):
        item, carry = state
        index = turn * blocks + processor
        following = read(index + blocks)
        return following, body(item, lax.rem(index, jnp.int32(heads)), carry)

    _, carry = lax.fori_loop(0, mine, deal, (read(processor), carry))
    return carry


def store(smem, gmem, row: jax.Array, extent: jax.Array) -> None:
    """Stores the first `extent` rows of a tile in pieces of a power of two, because a copy has a fixed size.

    Args:
      smem: ``[tile_rows, columns]`` in shared memory; the rows are a power of two.
      gmem: ``[rows, columns]`` in global memory.
      row: row of `gmem` at which the tile begins, a multiple of 8.
      extent: rows to store, a multiple of 8; those past `tile_rows` are ignored; below 8 nothing is stored.
    """
    rows = smem.shape[0]

    @pl.when(extent >= rows)
    def _whole():
        plgpu.copy_smem_to_gmem(smem, gmem.at[pl.ds(pl.multiple_of(row, 8), rows)], commit_group=False)

    for size in (2**i for i in range(3, rows.bit_length() - 1)):
        # The pieces before this one are the higher bits of the extent.
        @pl.when((extent > 0) & (extent < rows) & ((extent & size) != 0))
        def _piece(size=size):
            offset = pl.multiple_of(extent & (-2 * size), 8)
            plgpu.copy_smem_to_gmem(
                smem.at[pl.ds(offset, size)],
                gmem.at[pl.ds(pl.multiple_of(row + offset, 8), size)],
                commit_group=False,
            )


def stage_vector(smem, value: jax.Array) -> None:
    """Writes ``[VECTOR]`` into shared memory ``[2, STAGED]`` for `store_vector`: once as it is, once shifted."""
    smem.at[0, pl.ds(0, VECTOR)][...] = value
    smem.at[1, pl.ds(SHIFT, VECTOR)][...] = value


def store_vector(smem, gmem, row: jax.Array, extent: jax.Array) -> None:
    """Stores the first `extent` numbers of a vector, one per row of a tile, in pieces as `store` does.

    A copy must begin at a multiple of 128 bytes in shared memory, which is 32 numbers. The pieces of 16 and 32 do;
    those of 8 begin at a multiple of 16, and the odd ones are taken from the shifted vector.

    Args:
      smem: float32 in shared memory, filled by `stage_vector`.
      gmem: ``[rows]`` in global memory.
      row: where in `gmem` the vector begins, a multiple of 8.
      extent: numbers to store, a multiple of 8; those past `VECTOR` are ignored; below 8 nothing is stored.
    """

    def copy(size: int, offset: int | jax.Array = 0, shifted: bool = False):
        begin = offset + SHIFT if shifted else offset
        source = smem.at[int(shifted), pl.ds(begin if isinstance(begin, int) else pl.multiple_of(begin, 8), size)]
        target = gmem.at[pl.ds(pl.multiple_of(row + offset, 8), size)]
        plgpu.copy_smem_to_gmem(source, target, commit_group=False)

    pl.when(extent >= VECTOR)(lambda: copy(VECTOR))
    part = jnp.where((extent > 0) & (extent < VECTOR), extent, 0)
    pl.when((part & 32) != 0)(lambda: copy(32))
    pl.when((part & 16) != 0)(lambda: copy(16, part & 32))
    pl.when((part & 24) == 8)(lambda: copy(8, part & 32))
    pl.when((part & 24) == 24)(lambda: copy(8, part & 48, shifted=True))


VECTOR, SHIFT, STAGED = 64, 16, 96
"""Length of a vector, how far its second copy is shifted, and the room for a copy: a multiple of 32."""


def tiles_in_reach(
    first: jax.Array, rows: int, item: Mapping[int, Array] | Array, window: tuple[int, int], block: int
) -> tuple[jax.Array, jax.Array]:
    """The streamed tiles from the first to the last that any of a unit's rows can see through the window.

    Args:
      first: the unit's first row in its item.
      rows: how many the unit has.
      item: the item, or its row of the work list.
      window: ``(below, above)``, see `schedule.work_list`.
      block: rows of a tile.

    Returns:
      The first tile, and the one after the last; equal for a unit without rows.
    """
    below, above = window
    held = jnp.minimum(item[schedule.COUNT] - first, rows)
    middle = first + item[schedule.SHIFT]
    stop = jnp.minimum(middle + held + above, item[schedule.OTHER_COUNT])
    begin = lax.div(jnp.maximum(middle - below, 0), jnp.int32(block))
    end = lax.div(jnp.maximum(stop, 0) + (block - 1), jnp.int32(block))
    begin = jnp.minimum(begin, end)
    return begin, jnp.where(held > 0, end, begin)
