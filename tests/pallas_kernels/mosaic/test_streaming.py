"""What is easily got wrong in the parts that all streaming kernels share."""

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels.mosaic import schedule, sm90, sm100, target
from pallas_kernels.mosaic.streaming import LAUNCH_REGISTERS, for_each_item


@pytest.mark.parametrize("kernel", [sm90, sm100])
def test_warpgroups_ask_for_no_more_registers_than_there_are(kernel):
    """Two compute warpgroups and one that loads; the one that asks for more waits for ever, on a chip alone."""
    compute, memory = kernel.COMPUTE_REGISTERS, kernel.MEMORY_REGISTERS
    assert compute % 8 == memory % 8 == 0 and 24 <= memory <= LAUNCH_REGISTERS <= compute <= 255
    assert 2 * compute + memory <= 3 * LAUNCH_REGISTERS
    assert LAUNCH_REGISTERS == 65536 // (3 * 128) // 8 * 8


@pytest.mark.parametrize("used", [5, 3, 0])
def test_items_of_a_block_come_with_their_own_fields(used):
    """They are read one item ahead; in a full list nothing past its end is read, for that raises."""
    heads, blocks, capacity = 2, 3, 5
    listed = np.arange(capacity * schedule.FIELDS, dtype=np.int32).reshape(capacity, schedule.FIELDS)
    columns = [schedule.ROW, schedule.COUNT, schedule.OTHER_COUNT]

    def kernel(items, number, seen, turns):
        def body(item, head, turn):
            for column in columns:
                # A row of the list begins with a multiple of its length.
                seen[item[schedule.ROW] // schedule.FIELDS, head, column] = item[column]
            return turn + 1

        work = schedule.WorkList(items, number)
        turns[lax.axis_index("processor")] = for_each_item(work, columns, heads, blocks, body, jnp.int32(0))

    with target.interpret("sm90"):
        seen, turns = plgpu.kernel(
            kernel,
            out_type=(
                jax.ShapeDtypeStruct((capacity, heads, schedule.FIELDS), jnp.int32),
                jax.ShapeDtypeStruct((blocks,), jnp.int32),
            ),
            grid=(blocks,),
            grid_names=("processor",),
        )(listed, jnp.full(1, used, jnp.int32))
    assert int(turns.sum()) == used * heads
    for head in range(heads):
        np.testing.assert_array_equal(np.asarray(seen)[:used, head, columns], listed[:used, columns])
