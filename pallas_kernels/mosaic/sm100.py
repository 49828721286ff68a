"""The streaming kernel for Blackwell: one kernel for the forward pass, for dq, and for dk with dv.

It computes what `pallas_kernels.mosaic.sm90` does, with the tensor cores of this chip, which are fed by single threads
and keep scores and sums in tensor memory:

    S = a x^T                       scores, [128, block] float32
    D = b y^T                       backward only: gradient of the weights
    weights, dS = score(S, D)       16 bit, written over S and over D
    value += weights y              forward: O from (q; k, v).   dk, dv: dV from (k, v; q, dO)
    key   += dS x                   dq: dQ from (q, dO; k, v).   dk, dv: dK from (k, v; q, dO)

A unit is a stationary tile of 128 rows with a compute warpgroup, which turns scores into weights and writes the sums
out, and a warp that issues its products. The units share nothing but the streamed tiles, so while one computes weights
the tensor cores work for the other. One more warp loads. Blocks are persistent: each walks its share of the work list
(`pallas_kernels.mosaic.schedule`), and the loading and the issuing warps run ahead across items.

The forward pass of a softmax keeps a maximum and a sum of each row in registers. Where the maximum rises much, the sums
in tensor memory are multiplied by a factor before the next product is added, so that pass waits for the product before.
The backward passes are given what the rows' softmax needs, as statistics. With a window a unit passes the streamed
tiles by that none of its rows reaches, and masks those that not all of them reach.

Here are memory, loading and issuing; `pallas_kernels.mosaic.sm100_compute` holds the work of the compute warpgroups.
"""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Config, check_room
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score
from pallas_kernels.mosaic.sm100_compute import compute
from pallas_kernels.mosaic.sm100_plan import SWIZZLE, Plan, Refs, for_static, slot_of, when
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS
from pallas_kernels.mosaic.streaming import for_each_item, tiled_smem

COMPUTE_REGISTERS, MEMORY_REGISTERS = 208, 88
"""Of a thread, where there are two units: together no more than `streaming.LAUNCH_REGISTERS` allows."""


def shared_memory(
    dim: int,
    itemsize: int,
    *,
    backward: bool,
    config: Config,
    outputs: int = 1,
    statistics: int = 0,
    online: bool = False,
    out_itemsize: int | None = None,
) -> int:
    """Bytes of shared memory that the tiles of a kernel take, barriers aside.

    Args:
      dim: width of a head.
      itemsize: bytes of a number of the operands.
      backward: there are two stationary arrays.
      config: block sizes.
      outputs: how many sums are kept; with two, statistics are those of the streamed rows.
      statistics: how many there are of each row.
      online: running maxima are kept.
      out_itemsize: bytes of a number of the results, that of the operands unless given.
    """
    stationary = config.units * config.stationary_stages * (2 if backward else 1) * TILE_ROWS * dim
    streamed = 2 * config.stages * config.block * dim
    staging = config.units * TILE_ROWS * min(dim * (out_itemsize or itemsize), SWIZZLE)
    own_rows, other_rows = config.units * config.stationary_stages * TILE_ROWS, config.stages * config.block
    vectors = statistics * (other_rows if outputs == 2 else own_rows) + (config.units * TILE_ROWS if online else 0)
    # For the reductions of running maxima the compiler takes some bytes, on a boundary of 1024.
    return itemsize * (stationary + streamed) + staging + 4 * vectors + (1024 if online else 0)


def tensor_memory(dim: int, *, backward: bool, outputs: int, config: Config) -> int:
    """Columns of tensor memory that scores and sums take; each holds 128 rows of 32 bits."""
    scores = config.score_stages * config.block * (2 if backward else 1)
    return config.units * (scores + outputs * dim)


def attend(
    stationary: tuple[Float[Array, "_ heads dim"], ...],
    streamed: tuple[Float[Array, "other other_heads dim"], Float[Array, "others other_heads dim"]],
    work: WorkList,
    *,
    score: Score,
    sums: tuple[str, ...],
    ragged: bool,
    config: Config,
    processors: int,
    statistics: tuple[Float[Array, "query_heads query_rows"], ...] = (),
    window: tuple[int, int] | None = None,
    out_rows: int | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> tuple[Array, ...]:
    """Runs the streaming kernel.

    Args:
      stationary: ``(a,)`` for the forward pass, ``(a, b)`` for the backward passes, bfloat16 or float16; a is read at
        the items' `schedule.ROW`, b at `schedule.OUT_ROW`.
      streamed: ``(x, y)``, read at `schedule.OTHER_ROW` and `schedule.OTHER_SECOND_ROW`; rows in gaps hold no NaN
        (`schedule.clear_gaps`). One side may have a multiple of the other's heads, neighbours of which share one: if
        the streamed one has, sums run over those as well.
      work: items of ``config.units * config.run * TILE_ROWS`` rows.
      score: the score function.
      sums: which sums to keep, of ``"value"`` and ``"key"``, in the order of the results.
      ragged: False if the number of streamed rows is known to be a multiple of the block.
      config: block sizes.
      processors: multiprocessors of the chip, the number of persistent blocks.
      statistics: float32 numbers of each row and head of queries, for ``score.backward``. They lie beside the second
        stationary array where the queries stay (`sums` is ``("key",)``), else beside the second streamed one.
      window: ``(below, above)``: streamed row c of an item counts for its stationary row r if
        ``-below <= c - r - SHIFT <= above``; None if all do.
      out_rows: rows of the results, those of `a` unless given.
      out_dtype: of the results, that of `a` unless given; 16 or 32 bits.

    Returns:
      For each of `sums` an array ``[out_rows, heads, dim]``, the heads those of `a`; rows that hold nothing are zero.
      For an online score then log-sum-exps to the base 2, float32 ``[heads, out_rows]``.

    Raises:
      ValueError: the block does not suit, the config needs more shared or tensor memory than there is, a run with a
        window, with statistics or with an online score, or heads that are no multiple of each other.
    """
    rows, heads, dim = stationary[0].shape
    other_heads = streamed[0].shape[1]
    dtype, out_rows, out_dtype = stationary[0].dtype, out_rows or rows, jnp.dtype(out_dtype or stationary[0].dtype)
    block, stages, units, run = config.block, config.stages, config.units, config.run
    own_slots, score_slots = config.stationary_stages, config.score_stages
    plan = Plan(
        score=score,
        sums=sums,
        config=config,
        backward=len(stationary) == 2,
        ragged=ragged,
        window=window,
        statistics=len(statistics),
        heads=heads,
        other_heads=other_heads,
        dim=dim,
        dtype=dtype,
        out_dtype=out_dtype,
        blocks=max(1, min(processors, work.items.shape[0] * heads)),
    )
    backward, online, share, group = plan.backward, plan.online, plan.share, plan.group
    if block % 32 or (config.polynomial and block % 64):
        raise ValueError(f"{config}: block must be a multiple of 32, and of 64 for a share of polynomials")
    for name, given in (("window", window is not None), ("statistics", statistics), ("score.online", online)):
        if run > 1 and given:
            raise ValueError(f"{name} is given, so config.run must be 1 and not {run}")
    if heads * group != other_heads * share:
        raise ValueError(
            f"stationary has {heads} heads and streamed {other_heads}; one must be a multiple of the other"
        )
    check_room(
        config,
        dim,
        shared_memory=shared_memory(
            dim,
            dtype.itemsize,
            backward=backward,
            config=config,
            outputs=len(sums),
            statistics=len(statistics),
            online=online,
            out_itemsize=out_dtype.itemsize,
        ),
        tensor_memory=tensor_memory(dim, backward=backward, outputs=len(sums), config=config),
    )

    out_types = [jax.ShapeDtypeStruct((out_rows, heads, dim), out_dtype)] * len(sums)
    if online:
        out_types.append(jax.ShapeDtypeStruct((heads, out_rows), jnp.float32))

    def tiled(shape, dtype=dtype):
        return tiled_smem(shape, dtype, min(SWIZZLE, dim * jnp.dtype(dtype).itemsize))

    def tensor_barrier(**arguments):
        return plgpu.Barrier(orders_tensor_core=True, **arguments)

    def entry(*refs):
        inputs, outputs = refs[: len(refs) - len(out_types)], refs[len(refs) - len(out_types) :]
        scores = plgpu.TMEM((TILE_ROWS, block), jnp.float32)
        weights = plgpu.TMEM((TILE_ROWS, block), dtype, packed=True)
        other_copies = (1, 1 + plan.other_statistics * len(statistics))
        # The second product takes its weights from where the score was: S becomes the weights, D becomes dS.
        tiles = {name: plgpu.RefUnion(scores, weights) if name in sums else scores for name in plan.weight_names}
        pl.run_scoped(
            lambda *tiles, **barriers: kernel(inputs, outputs, *tiles, **barriers),
            [tiled((units, own_slots, TILE_ROWS, dim)) for _ in stationary],
            [tiled((stages, block, dim)) for _ in streamed],
            [plgpu.SMEM((units, own_slots, TILE_ROWS) if plan.own_statistics else (stages, block), jnp.float32)]
            * len(statistics),
            tiled((units, TILE_ROWS, plan.piece), out_dtype),
            plgpu.SMEM((units, TILE_ROWS), jnp.float32) if online else None,
            [[tiles] * score_slots] * units,
            [{name: plgpu.TMEM((TILE_ROWS, dim), jnp.float32) for name in sums}] * units,
            own_full=plgpu.Barrier(
                num_arrivals=len(stationary) + plan.own_statistics * len(statistics), num_barriers=units * own_slots
            ),
            own_free=tensor_barrier(num_arrivals=plan.own_readers, num_barriers=units * own_slots),
            full=[plgpu.Barrier(num_arrivals=copies, num_barriers=stages) for copies in other_copies],
            free=[tensor_barrier(num_arrivals=units * readers, num_barriers=stages) for readers in plan.other_readers],
            score_full=tensor_barrier(num_barriers=units * score_slots),
            weights_full=tensor_barrier(num_barriers=units * score_slots),
            score_free=None if config.products_in_order else tensor_barrier(num_barriers=units * score_slots),
            sum_full=tensor_barrier(num_barriers=units),
            collective_axes="wg",
        )

    def aligned(row):
        """`row`, a multiple of 8, so that the compiler sees it: `pl.multiple_of` does not exist for a single warp."""
        return row & -8

    def kernel(
        inputs,
        outputs,
        own_smem,
        other_smem,
        number_smem,
        out_smem,
        row_smem,
        score_tmem,
        sum_tmem,
        *,
        own_full,
        own_free,
        full,
        free,
        score_full,
        weights_full,
        score_free,
        sum_full,
    ):
        items, used, *operands = inputs
        own, other = operands[: len(stationary)], operands[len(stationary) :][:2]
        numbers = operands[len(stationary) + 2 :]
        refs = Refs(
            items,
            used,
            own,
            other,
            numbers,
            outputs,
            own_smem,
            other_smem,
            number_smem,
            out_smem,
            row_smem,
            score_tmem,
            sum_tmem,
            own_full,
            own_free,
            full,
            free,
            score_full,
            weights_full,
            score_free,
            sum_full,
        )
        wg = lax.axis_index("wg")

        def load():
            def load_item(item, head, steps):
                turns, count = plan.tiles_of(items, item)
                own_rows = [items[item, field] for field in (schedule.ROW, schedule.OUT_ROW)[: len(own)]]
                other_rows = [items[item, field] for field in (schedule.OTHER_ROW, schedule.OTHER_SECOND_ROW)]

                def load_turn(t, first, last, steps):
                    own_step, other_step = steps
                    for unit in range(units):
                        slot = slot_of(own_step, own_slots)
                        barrier = unit * own_slots + slot
                        starts = [aligned(row + (t * units + unit) * TILE_ROWS) for row in own_rows]
                        plgpu.barrier_wait(own_free.at[barrier])
                        for start, gmem, smem in zip(starts, own, own_smem, strict=True):
                            plgpu.copy_gmem_to_smem(
                                gmem.at[pl.ds(start, TILE_ROWS), head], smem.at[unit, slot], own_full.at[barrier]
                            )
                        for gmem, smem in zip(numbers, number_smem, strict=True) if plan.own_statistics else ():
                            plgpu.copy_gmem_to_smem(
                                gmem.at[head, pl.ds(starts[1], TILE_ROWS)], smem.at[unit, slot], own_full.at[barrier]
                            )

                    def load_head(i, other_step):
                        other_head = head if share == 1 else lax.div(head, jnp.int32(share))
                        other_head = other_head if group == 1 else head * group + i

                        def load_tile(j, other_step):
                            slot = slot_of(other_step, stages)
                            starts = [aligned(row + j * block) for row in other_rows]
                            for start, gmem, smem, ready, done in zip(
                                starts, other, other_smem, full, free, strict=True
                            ):
                                plgpu.barrier_wait(done.at[slot])
                                plgpu.copy_gmem_to_smem(
                                    gmem.at[pl.ds(start, block), other_head], smem.at[slot], ready.at[slot]
                                )
                            for gmem, smem in zip(numbers, number_smem, strict=True) if plan.other_statistics else ():
                                plgpu.copy_gmem_to_smem(
                                    gmem.at[other_head, pl.ds(starts[1], block)], smem.at[slot], full[1].at[slot]
                                )
                            return other_step + 1

                        tiles = count if first is True else jnp.where(first, count, 0)
                        return lax.fori_loop(0, tiles, load_tile, other_step)

                    return own_step + 1, plan.over_heads(load_head, other_step)

                # Where nothing streams, the compute warpgroups write zeros and need nobody.
                return lax.cond(count > 0, lambda: plan.over_turns(turns, load_turn, steps), lambda: steps)

            for_each_item(used[0], heads, plan.blocks, load_item, (jnp.int32(0), jnp.int32(0)))
            # Every slot has been given free once more than it was filled.
            for slot in range(units * own_slots):
                plgpu.barrier_wait(own_free.at[slot])
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_wait(barrier.at[slot])

        def issue(unit):
            """Issues the products of a unit."""

            def issue_item(item, _, steps):
                turns, count = plan.tiles_of(items, item)

                def issue_turn(t, first, last, steps):
                    own_step, other_step, score_step = steps
                    own_slot = slot_of(own_step, own_slots)
                    tiles = [smem.at[unit, own_slot] for smem in own_smem]
                    active, begin, end = plan.tiles_for(items, item, (t * units + unit) * TILE_ROWS, count)

                    def issue_head(i, _):
                        # Steps of the first tile of this head, and of the first one that the unit works on.
                        first_step, first_score = other_step, score_step
                        if group > 1:
                            first_step, first_score = other_step + i * count, score_step + i * (end - begin)

                        def score_slot_of(j):
                            return slot_of(first_score + (j if window is None else j - begin), score_slots)

                        def is_last(j):
                            return j == end - 1 if group == 1 else (j == end - 1) & (i == group - 1)

                        def scores(j):
                            slot = slot_of(first_step + j, stages)
                            x, y = (smem.at[slot] for smem in other_smem)

                            def into(score_slot, _):
                                barrier = unit * score_slots + score_slot
                                (s, *d), _ = plan.score_tiles(score_tmem, unit, score_slot)

                                def put(target, a, b, replaced):
                                    # The weights that lie here have to be multiplied first.
                                    if replaced and score_free is not None:
                                        plgpu.barrier_wait(score_free.at[barrier])
                                    plgpu.tcgen05_mma(target, a, b.transpose((1, 0)), accumulate=False)

                                when(first, lambda: plgpu.barrier_wait(full[0].at[slot]))
                                put(s, tiles[0], x, "value" in sums)
                                if backward:
                                    when(first, lambda: plgpu.barrier_wait(full[1].at[slot]))
                                    # S has waited already where both are replaced.
                                    put(d[0], tiles[1], y, "value" not in sums)
                                plgpu.tcgen05_commit_arrive(score_full.at[barrier])

                            for_static(score_slot_of(j), score_slots, into)
                            if "key" not in sums:
                                when(last, lambda: plgpu.tcgen05_commit_arrive(free[0].at[slot]))
                            if "value" not in sums:
                                when(last, lambda: plgpu.tcgen05_commit_arrive(free[1].at[slot]))

                            @pl.when(is_last(j))
                            def _free():
                                plgpu.tcgen05_commit_arrive(own_free.at[unit * own_slots + own_slot])

                        def products(j):
                            slot = slot_of(first_step + j, stages)
                            operand = {"value": 1, "key": 0}  # y and x
                            if not backward:
                                when(first, lambda: plgpu.barrier_wait(full[1].at[slot]))

                            def out_of(score_slot, _):
                                barrier = unit * score_slots + score_slot
                                # These weights come after the sums of the turn before were read by the same warpgroup.
                                plgpu.barrier_wait(weights_full.at[barrier])
                                _, weights = plan.score_tiles(score_tmem, unit, score_slot)
                                begun = j > begin if group == 1 else (j > begin) | (i > 0)
                                for name in sums:
                                    tile = other_smem[operand[name]].at[slot]
                                    plgpu.tcgen05_mma(sum_tmem[unit][name], weights[name], tile, accumulate=begun)
                                if score_free is not None:
                                    plgpu.tcgen05_commit_arrive(score_free.at[barrier])

                            for_static(score_slot_of(j), score_slots, out_of)
                            for name in sums:
                                barrier = free[operand[name]].at[slot]
                                when(last, lambda barrier=barrier: plgpu.tcgen05_commit_arrive(barrier))
                            # Running sums are rescaled between two products, others are read at the end.
                            when(
                                True if online else is_last(j),
                                lambda: plgpu.tcgen05_commit_arrive(sum_full.at[unit]),
                            )

                        def pass_by(begin, end):
                            """Does for streamed tiles what a unit that works on them does."""

                            @pl.loop(begin, end)
                            def _step(j):
                                slot = slot_of(first_step + j, stages)
                                for ready, done in zip(full, free, strict=True):
                                    when(first, lambda ready=ready: plgpu.barrier_wait(ready.at[slot]))
                                    when(last, lambda done=done: plgpu.tcgen05_commit_arrive(done.at[slot]))

                        def work():
                            if window is not None:
                                pass_by(0, begin)

                            @pl.loop(begin, end + 1)
                            def _step(j):
                                # With two slots the scores of the next step do not wait for the weights of this one.
                                if score_slots == 2:
                                    pl.when(j < end)(lambda: scores(j))
                                pl.when(j > begin)(lambda: products(j - 1))
                                if score_slots == 1:
                                    pl.when(j < end)(lambda: scores(j))

                            if window is not None:
                                pass_by(end, count)

                        def rest():
                            pass_by(0, count)

                            @pl.when(i == group - 1)
                            def _free():
                                plgpu.tcgen05_commit_arrive(own_free.at[unit * own_slots + own_slot])

                        lax.cond(active, work, rest)

                    plgpu.barrier_wait(own_full.at[unit * own_slots + own_slot])
                    plan.over_heads(issue_head, None)
                    done = jnp.where(active, (end - begin) * group, 0)
                    return own_step + 1, jnp.where(last, other_step + count * group, other_step), score_step + done

                return lax.cond(count > 0, lambda: plan.over_turns(turns, issue_turn, steps), lambda: steps)

            for_each_item(used[0], heads, plan.blocks, issue_item, (jnp.int32(0),) * 3)
            if score_free is not None:
                for slot in range(score_slots):
                    plgpu.barrier_wait(score_free.at[unit * score_slots + slot])

        def serve():
            """The work of the warpgroup without a unit."""
            if units == 2:
                plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")

            @plgpu.warp_map
            def _warp(warp):
                pl.when(warp == 0)(load)
                for unit in range(units):
                    pl.when(warp == unit + 1)(lambda unit=unit: issue(unit))

        def compute_in_warpgroup(unit):
            if units == 2:
                plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            compute(unit, plan, refs)

        # One switch and not a condition for each warpgroup: nothing then is kept, and spilled, for the next condition.
        lax.switch(wg, [lambda unit=unit: compute_in_warpgroup(unit) for unit in range(units)] + [serve])

    return plgpu.kernel(
        entry,
        out_type=tuple(out_types),
        grid=(plan.blocks,),
        grid_names=("processor",),
        num_threads=units + 1,
        thread_name="wg",
        # Reductions stay within a warp and need no shared memory; the compiler asks for some for each.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=16),
    )(work.items, work.used, *stationary, *streamed, *statistics)
