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
carried in registers, to be rescaled when a larger one comes. The backward passes take the log-sum-exp and delta of each
row of queries, which stay or stream with it. With a window each unit computes with the tiles that its own rows reach
and passes the others by; scores are masked in the tiles at its edges.
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
from pallas_kernels.mosaic.score import LOWEST, Score, in_chunks, online_step
from pallas_kernels.mosaic.streaming import (
    STAGED,
    for_each_item,
    stage_vector,
    store,
    store_vector,
    tiled_smem,
    tiles_in_reach,
)

TILE_ROWS = 64
"""Stationary rows of a compute warpgroup: the rows of one wgmma."""

COMPUTE_REGISTERS, MEMORY_REGISTERS = 240, 24
"""Of a thread, where there are two units: together no more than `streaming.LAUNCH_REGISTERS` allows."""


def shared_memory(
    dim: int,
    itemsize: int,
    *,
    backward: bool,
    outputs: int,
    config: Config,
    out_itemsize: int | None = None,
    softmax: bool = False,
) -> int:
    """Bytes of shared memory that the tiles of a kernel take, barriers aside.

    Args:
      dim: width of a head.
      itemsize: bytes of an operand's element.
      backward: whether there are two stationary tiles.
      outputs: sums.
      config: block sizes.
      out_itemsize: bytes of a result's element, `itemsize` unless given.
      softmax: whether there are statistics of rows, in float32.
    """
    stationary = config.units * config.stationary_stages * (2 if backward else 1) * TILE_ROWS
    streamed = 2 * config.stages * config.block
    weights = config.units * TILE_ROWS * config.block * (2 if backward else 1) if config.weights_in_smem else 0
    staging = config.units * outputs * TILE_ROWS * dim * (out_itemsize or itemsize)
    # Two statistics that stay or stream in a backward pass, the one that a forward pass makes.
    slots = config.stages * config.block if outputs == 2 else config.units * config.stationary_stages * TILE_ROWS
    statistics = 4 * (2 * slots if backward else config.units * 2 * STAGED) if softmax else 0
    return itemsize * (dim * (stationary + streamed) + weights) + staging + statistics


def attend(
    stationary: tuple[Float[Array, "_ heads dim"], ...],
    streamed: tuple[Float[Array, "_ other_heads dim"], Float[Array, "_ other_heads dim"]],
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
      stationary: ``(a,)`` for the forward pass, ``(a, b)`` for the backward passes.
      streamed: ``(x, y)``; rows in gaps hold no NaN (`schedule.clear_gaps`). Its heads may be fewer or more than those
        that stay: one is a multiple of the other, and the heads of one group follow each other.
      work: items of ``config.units * config.run * TILE_ROWS`` rows.
      score: the score function.
      sums: which sums to keep, of ``"value"`` and ``"key"``, in the order of the results.
      ragged: False if the number of streamed rows is known to be a multiple of the block.
      config: block sizes.
      processors: multiprocessors of the chip, the number of persistent blocks.
      statistics: float32, of each row of queries, for `score.backward`: with one sum, for dq, they stay beside ``b``;
        with two, for dk and dv, they stream beside ``y``.
      window: ``(below, above)`` as in `schedule.work_list`, which made `work` with it.
      out_rows: rows of the results, those of ``a`` unless given.
      out_dtype: of the sums, that of ``a`` unless given.

    Returns:
      For each of `sums` ``[out_rows, heads, dim]`` with the heads of ``a``; rows that hold nothing are zero. With
      `score.online` the forward pass also gives the log-sum-exps of rows to the base 2, float32 ``[heads,
      out_rows]``; `LOWEST` in rows that hold nothing or met nothing.

    Raises:
      ValueError: heads that are no multiple of each other, a config that a softmax or a window cannot have, or one that
        needs more shared memory than there is.
    """
    rows, heads, dim = stationary[0].shape
    dtype = stationary[0].dtype
    backward = len(stationary) == 2
    online = None if backward else score.online
    block, stages, units, run = config.block, config.stages, config.units, config.run
    slots = config.stationary_stages
    other_heads = streamed[0].shape[1]
    if max(heads, other_heads) % min(heads, other_heads):
        raise ValueError(f"attend: {heads} heads stay and {other_heads} stream; one must be a multiple of the other")
    for name, given in (("window", window is not None), ("statistics", statistics), ("score.online", online)):
        if run > 1 and given:
            raise ValueError(
                f"attend: config.run={run} keeps streamed tiles, which {name} does not go with; it must be 1"
            )
    if len(sums) == 2 and statistics and block % 32:
        raise ValueError(f"attend: config.block={block} streams statistics; it must be a multiple of 32")
    own_statistics, other_statistics = ((), statistics) if len(sums) == 2 else (statistics, ())
    sharing, group = max(1, heads // other_heads), max(1, other_heads // heads)
    out_rows, out_dtype = out_rows or rows, jnp.dtype(out_dtype or dtype)
    check_room(
        config,
        dim,
        shared_memory=shared_memory(
            dim,
            dtype.itemsize,
            backward=backward,
            outputs=len(sums),
            config=config,
            out_itemsize=out_dtype.itemsize,
            softmax=bool(statistics) or online is not None,
        ),
    )
    results = [jax.ShapeDtypeStruct((out_rows, heads, dim), out_dtype) for _ in sums]
    if online is not None:
        results.append(jax.ShapeDtypeStruct((heads, out_rows), jnp.float32))
    blocks = max(1, min(processors, work.items.shape[0] * heads))
    swizzle = min(128, dim * dtype.itemsize)
    weight_swizzle = min(128, block * dtype.itemsize)

    def tiled(shape, swizzle=swizzle, dtype=dtype):
        return tiled_smem(shape, dtype, swizzle)

    def entry(*refs):
        inputs, outputs = refs[: len(refs) - len(results)], refs[len(refs) - len(results) :]
        weights_smem = [tiled((units, TILE_ROWS, block), weight_swizzle) for _ in sums if config.weights_in_smem]
        staging = [tiled((units, TILE_ROWS, dim), min(128, dim * out_dtype.itemsize), out_dtype) for _ in sums]
        pl.run_scoped(
            lambda *scratch: kernel(inputs, outputs, *scratch),
            [tiled((units, slots, TILE_ROWS, dim)) for _ in stationary],
            [plgpu.SMEM((units, slots, TILE_ROWS), jnp.float32) for _ in own_statistics],
            [tiled((stages, block, dim)) for _ in streamed],
            [plgpu.SMEM((stages, block), jnp.float32) for _ in other_statistics],
            staging,
            plgpu.SMEM((units, 2, STAGED), jnp.float32) if online is not None else None,
            weights_smem,
            plgpu.Barrier(num_arrivals=len(stationary) + len(own_statistics), num_barriers=units * slots),
            plgpu.Barrier(num_barriers=units * slots),
            [plgpu.Barrier(num_arrivals=n, num_barriers=stages) for n in (1, 1 + len(other_statistics))],
            [plgpu.Barrier(num_arrivals=units, num_barriers=stages) for _ in streamed],
            plgpu.Barrier(num_arrivals=2) if config.ping_pong and units == 2 else None,
            collective_axes="wg",
        )

    def kernel(
        inputs,
        outputs,
        own_smem,
        own_statistics_smem,
        other_smem,
        other_statistics_smem,
        out_smem,
        log_sum_smem,
        weight_smem,
        own_full,
        own_free,
        full,
        free,
        turn,
    ):
        items, used, *operands = inputs
        own, other = operands[: len(stationary)], operands[len(stationary) : len(stationary) + 2]
        statistics_gmem = operands[len(stationary) + 2 :]
        wg = lax.axis_index("wg")

        def tiles_of(item):
            """Turns of the item, and streamed tiles of each turn and head."""
            turns = 1 if run == 1 else pl.cdiv(items[item, schedule.EXTENT], units * TILE_ROWS)
            return turns, lax.div(items[item, schedule.OTHER_COUNT] + (block - 1), jnp.int32(block))

        def over(number, body, carry):
            """A loop, and none where there is one turn."""
            return body(0, carry) if isinstance(number, int) and number == 1 else lax.fori_loop(0, number, body, carry)

        def slot_of(step, number):
            return 0 if number == 1 else lax.rem(step, jnp.int32(number))

        @pl.when(wg == units)
        def _load():
            if units == 2:  # with one, the launch gives both as many as there can be
                plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")

            def load_item(item, head, steps):
                turns, count = tiles_of(item)
                rows_of = [items[item, field] for field in (schedule.ROW, schedule.OUT_ROW)]
                other_rows = [items[item, field] for field in (schedule.OTHER_ROW, schedule.OTHER_SECOND_ROW)]

                def load_turn(t, steps):
                    own_step, other_step = steps
                    for unit in range(units):
                        own_slot = slot_of(own_step, slots)
                        slot = unit * slots + own_slot
                        plgpu.barrier_wait(own_free.at[slot])
                        for i, (gmem, smem) in enumerate(zip(own, own_smem, strict=True)):
                            first = pl.multiple_of(rows_of[i] + (t * units + unit) * TILE_ROWS, 8)
                            tile = gmem.at[pl.ds(first, TILE_ROWS), head]
                            plgpu.copy_gmem_to_smem(tile, smem.at[unit, own_slot], own_full.at[slot])
                        for gmem, smem in zip(statistics_gmem, own_statistics_smem, strict=False):
                            first = pl.multiple_of(rows_of[1] + (t * units + unit) * TILE_ROWS, 8)
                            vector = gmem.at[head, pl.ds(first, TILE_ROWS)]
                            plgpu.copy_gmem_to_smem(vector, smem.at[unit, own_slot], own_full.at[slot])

                    def load_head(number, other_step):
                        other_head = head if sharing == 1 else lax.div(head, jnp.int32(sharing))
                        other_head = other_head if group == 1 else head * group + number

                        def load_tile(j, other_step):
                            slot = slot_of(other_step, stages)
                            for i in range(2):
                                plgpu.barrier_wait(free[i].at[slot])
                                at = pl.ds(pl.multiple_of(other_rows[i] + j * block, 8), block)
                                plgpu.copy_gmem_to_smem(
                                    other[i].at[at, other_head], other_smem[i].at[slot], full[i].at[slot]
                                )
                            # Where they stay, there are none of these; `at` is that of y.
                            for gmem, smem in zip(statistics_gmem, other_statistics_smem, strict=False):
                                plgpu.copy_gmem_to_smem(gmem.at[other_head, at], smem.at[slot], full[1].at[slot])
                            return other_step + 1

                        first_turn = jnp.where(t == 0, count, 0) if run > 1 else count
                        return lax.fori_loop(0, first_turn, load_tile, other_step)

                    return own_step + 1, over(group, load_head, other_step)

                return over(turns, load_turn, steps)

            for_each_item(used[0], heads, blocks, load_item, (jnp.int32(0), jnp.int32(0)))
            # Every slot has been given free once more than it was filled.
            for slot in range(units * slots):
                plgpu.barrier_wait(own_free.at[slot])
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_wait(barrier.at[slot])

        @pl.when(wg < units)
        def _compute():
            if units == 2:
                plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            for slot in range(slots):
                plgpu.barrier_arrive(own_free.at[wg * slots + slot])
            for slot in range(stages):
                for i in range(2):
                    plgpu.barrier_arrive(free[i].at[slot])

            def take_turn():
                if turn is not None:
                    plgpu.barrier_arrive(turn)
                    plgpu.barrier_wait(turn)

            def scores(a, x):
                """``a x^T`` of two tiles in shared memory; then it is the other warpgroup's turn."""

                def scope(acc):
                    plgpu.wgmma(acc, a, x.transpose((1, 0)))
                    take_turn()
                    return acc[...]

                return pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef((TILE_ROWS, block), jnp.float32))

            def scores_and_gradient(a, x, b, y):
                """``a x^T`` and ``b y^T``."""

                def scope(first, second):
                    plgpu.wgmma(first, a, x.transpose((1, 0)))
                    plgpu.wgmma(second, b, y.transpose((1, 0)))
                    take_turn()
                    return first[...], second[...]

                acc = plgpu.WGMMAAccumulatorRef((TILE_ROWS, block), jnp.float32)
                return pl.run_scoped(scope, acc, acc)

            # The arrays are narrowed chunk by chunk, so that the wide ones die early: registers are what is short.
            def forward(s, polynomial):
                return (score.weights(s, polynomial).astype(dtype),)

            def both(s, d, *more):
                *of_rows, polynomial = more  # what `statistics_of` gives, and whether this chunk uses polynomials
                weights, ds = score.backward(s, d, polynomial, tuple(of_rows))
                return weights.astype(dtype), ds.astype(dtype)

            def add_product(acc, weights, i, tile):
                if config.weights_in_smem:
                    smem = weight_smem[i].at[wg]
                    smem[...] = weights
                    plgpu.commit_smem()
                    weights = smem
                plgpu.wgmma(acc, weights, tile)

            def plus_product(acc, weights, tile):
                """The sum that an online softmax carries in registers, for it is rescaled, and one more product."""
                if not config.weights_in_smem:
                    return pl.run_state(lambda ref: plgpu.wgmma(ref, weights, tile))(
                        plgpu.WGMMAAccumulatorRef.init(acc)
                    )

                def scope(product):
                    add_product(product, weights, 0, tile)
                    return product[...]

                return acc + pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef((TILE_ROWS, dim), jnp.float32))

            def compute_item(item, head, steps):
                turns, count = tiles_of(item)
                other_count = items[item, schedule.OTHER_COUNT]

                def compute_turn(t, steps):
                    own_step, other_step = steps
                    own_slot = slot_of(own_step, slots)
                    first = (t * units + wg) * TILE_ROWS
                    plgpu.barrier_wait(own_full.at[wg * slots + own_slot])
                    loads = (t == 0) if run > 1 else True
                    last = (t == turns - 1) if run > 1 else True

                    def when(condition, action):
                        action() if condition is True else pl.when(condition)(action)

                    def own_tiles(opaque=False):
                        """The stationary tiles; `opaque` so that the compiler does not see that they are always the
                        same, or it keeps their descriptors in registers from the first item to the last.
                        """
                        unit = lax.optimization_barrier(wg) if opaque else wg
                        return [smem.at[unit, own_slot] for smem in own_smem]

                    def masked(j, fill, *arrays):
                        """The arrays with `fill` where a row does not meet a streamed one."""
                        if not ragged and window is None:
                            return arrays
                        left = other_count - j * block
                        at_edge = left < block
                        below, above = window or (0, 0)
                        ahead = jnp.int32(0)  # by how much the first column is in front of the first row
                        if window is not None:
                            ahead = j * block - first - items[item, schedule.SHIFT]
                            at_edge |= (ahead < TILE_ROWS - 1 - below) | (ahead > above - (block - 1))

                        def mask():
                            layout = plgpu.Layout.WGMMA
                            column = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, block), 1, layout=layout)
                            if window is None:
                                allowed = column < left
                            else:
                                # Bounds by row: the compiler would keep a tile of distances from step to step.
                                row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0, layout=layout.reduce(1))
                                bounds = row - (below + ahead), jnp.minimum(row + (above - ahead), left - 1)
                                low, high = (lax.broadcast_in_dim(x, column.shape, [0]) for x in bounds)
                                allowed = (column >= low) & (column <= high)
                            return tuple(jnp.where(allowed, x, jnp.asarray(fill, x.dtype)) for x in arrays)

                        # For gdpa's backward passes a branch costs registers that are not there: all tiles are masked.
                        return mask() if backward and not statistics else lax.cond(at_edge, mask, lambda: arrays)

                    def stream(step, carry):
                        """``step(slot, j, carry)`` for the streamed tiles of every head that come into reach."""
                        begin, end = 0, count
                        if window is not None:
                            begin, end = tiles_in_reach(first, TILE_ROWS, lambda x: items[item, x], window, block)

                        def head_turn(number, carry):
                            start = other_step if group == 1 else other_step + number * count

                            def pass_by(j, _):
                                """Takes part in what the other unit waits for: the slot is free, and two turns."""
                                slot = slot_of(start + j, stages)
                                for i in range(2):
                                    plgpu.barrier_wait(full[i].at[slot])
                                    plgpu.barrier_arrive(free[i].at[slot])
                                    take_turn()

                            if window is not None:
                                lax.fori_loop(0, begin, pass_by, None)
                            carry = lax.fori_loop(
                                begin, end, lambda j, carry: step(slot_of(start + j, stages), j, carry), carry
                            )
                            if window is not None:
                                lax.fori_loop(end, count, pass_by, None)
                            return carry

                        if turn is not None:
                            pl.when(wg == 1)(take_turn)
                        carry = over(group, head_turn, carry)
                        if turn is not None:
                            pl.when(wg == 0)(take_turn)
                        plgpu.barrier_arrive(own_free.at[wg * slots + own_slot])
                        return carry

                    def take_turn_with_values(slot):
                        """Waits for the streamed ``y`` and the other warpgroup; the scores are done."""
                        if turn is not None:
                            plgpu.barrier_arrive(turn)
                        if not backward:
                            when(loads, lambda: plgpu.barrier_wait(full[1].at[slot]))
                        if turn is not None:
                            plgpu.barrier_wait(turn)

                    def finish(*values):
                        """Puts the sums, float32, into their staging tiles."""
                        # The store of the turn before has read its staging tile by now.
                        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        held = items[item, schedule.COUNT] - first
                        row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, dim), 0, layout=plgpu.Layout.WGMMA)
                        for smem, name, value in zip(out_smem, sums, values, strict=True):
                            scale = score.value_scale if name == "value" else score.key_scale
                            smem.at[wg][...] = jnp.where(row < held, value * scale, 0.0).astype(out_dtype)
                        return held

                    def statistics_of(slot):
                        """What gives the statistics for some columns of the scores."""
                        along, layout = 0, plgpu.Layout.WGMMA.reduce(1)
                        if other_statistics:
                            along, layout = 1, plgpu.Layout.WGMMA.reduce(0)

                        def of_columns(columns):
                            width = columns.stop - columns.start
                            refs = [x.at[wg, own_slot] for x in own_statistics_smem]
                            refs += [x.at[slot, pl.ds(columns.start, width)] for x in other_statistics_smem]
                            vectors = (plgpu.load(x, layout=layout) for x in refs)
                            return tuple(lax.broadcast_in_dim(x, (TILE_ROWS, width), [along]) for x in vectors)

                        return of_columns if statistics else None

                    def accumulate(*sums_acc):
                        by_name = dict(zip(sums, sums_acc, strict=True))

                        def step(slot, j, _):
                            x, y = (smem.at[slot] for smem in other_smem)
                            when(loads, lambda: plgpu.barrier_wait(full[0].at[slot]))
                            if backward:
                                when(loads, lambda: plgpu.barrier_wait(full[1].at[slot]))
                                a, b = own_tiles(opaque=bool(statistics))
                                products = scores_and_gradient(a, x, b, y)
                                weights, ds = in_chunks(both, config.polynomial, *products, more=statistics_of(slot))
                                weights, ds = masked(j, 0, weights, ds)
                            else:
                                s = scores(own_tiles()[0], x)
                                when(last, lambda: plgpu.barrier_arrive(free[0].at[slot]))
                                (weights,) = masked(j, 0, *in_chunks(forward, config.polynomial, s))
                            take_turn_with_values(slot)
                            for i, name in enumerate(sums):
                                operands = (weights, i, y) if name == "value" else (ds, i, x)
                                add_product(by_name[name], *operands)
                            plgpu.wgmma_wait(0)
                            if backward:
                                when(last, lambda: plgpu.barrier_arrive(free[0].at[slot]))
                            when(last, lambda: plgpu.barrier_arrive(free[1].at[slot]))

                        stream(step, None)
                        finish(*(by_name[name][...] for name in sums))

                    def accumulate_online(online: float):
                        # A maximum of negative multiples would be a minimum, and -inf times zero is none.
                        before, factor = (1.0, online) if online > 0 else (online, 1.0)

                        def step(slot, j, carry):
                            acc, highest, total = carry
                            x, y = (smem.at[slot] for smem in other_smem)
                            plgpu.barrier_wait(full[0].at[slot])
                            s = scores(own_tiles()[0], x)
                            plgpu.barrier_arrive(free[0].at[slot])
                            s = s if before == 1 else s * before
                            (s,) = masked(j, -jnp.inf, s)
                            weights, highest, total, decay = online_step(s, highest, total, factor, dtype)
                            acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
                            take_turn_with_values(slot)
                            acc = plus_product(acc, weights, y)
                            plgpu.barrier_arrive(free[1].at[slot])
                            return acc, highest, total

                        of_rows = plgpu.Layout.WGMMA.reduce(1)
                        acc, highest, total = stream(
                            step,
                            (
                                plgpu.layout_cast(jnp.zeros((TILE_ROWS, dim), jnp.float32), plgpu.Layout.WGMMA),
                                plgpu.layout_cast(jnp.full((TILE_ROWS,), LOWEST, jnp.float32), of_rows),
                                plgpu.layout_cast(jnp.zeros((TILE_ROWS,), jnp.float32), of_rows),
                            ),
                        )
                        inverse = jnp.where(total > 0, 1 / total, 0.0)
                        held = finish(acc * lax.broadcast_in_dim(inverse, acc.shape, [0]))
                        row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0, layout=of_rows)
                        log_sum = jnp.where((row < held) & (total > 0), highest + jnp.log2(total), LOWEST)
                        stage_vector(log_sum_smem.at[wg], log_sum)

                    if online is not None:
                        accumulate_online(online)
                    else:
                        acc = plgpu.WGMMAAccumulatorRef((TILE_ROWS, dim), jnp.float32)
                        pl.run_scoped(accumulate, *(acc for _ in sums))
                    plgpu.commit_smem()
                    extent = items[item, schedule.EXTENT] - first
                    at = items[item, schedule.OUT_ROW] + first
                    for smem, gmem in zip(out_smem, outputs, strict=False):
                        store(smem.at[wg], gmem.at[:, head], at, extent)
                    if online is not None:
                        store_vector(log_sum_smem.at[wg], outputs[-1].at[head], at, extent)
                    plgpu.commit_smem_to_gmem_group()
                    after = other_step + (count if group == 1 else count * group)
                    return own_step + 1, jnp.where(last, after, other_step) if run > 1 else after

                return over(turns, compute_turn, steps)

            for_each_item(used[0], heads, blocks, compute_item, (jnp.int32(0), jnp.int32(0)))
            plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        entry,
        out_type=tuple(results),
        grid=(blocks,),
        grid_names=("processor",),
        num_threads=units + 1,
        thread_name="wg",
        # A row's scores are in one warp, so that no reduction needs shared memory.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
    )(work.items, work.used, *stationary, *streamed, *statistics)
