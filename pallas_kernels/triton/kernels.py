"""The Triton kernels: a tile of rows stays, tiles of the same example stream past it. Load by `target.kernels`.

`forward` keeps queries and streams keys and values. `backward` keeps queries and their cotangent and streams keys and
values (dq), or the other way round (dk, dv). `pallas_kernels.triton.schedule` says what an item is; a program does one
item for one head. Operands and outputs are ``[rows, heads, dim]``, log-sum-exps (to base 2) and deltas ``[rows,
heads]`` float32, None for pointwise scores.

Constants of both kernels:
  SCALE: factor of the scores.
  VALUE_SCALE: factor of the sum of weighted values.
  ACTIVATION: a name of `pallas_kernels.activations`, or "softmax".
  LEFT, RIGHT: streamed rows that a stationary one meets, -LEFT <= streamed position - own position <= RIGHT.
  WINDOWED: whether LEFT and RIGHT count.
  SHARED: whether all examples have the same queries, stored once.
  HEADS, DIM: of the arrays. ROWS: stationary rows of a program. TILE: streamed rows of a step.
  INTERPRETED: the interpreter has no product of bfloat16 and rounds to it by truncation, so here float32 goes through
    the products, and what should be 16 bits wide is rounded to nearest by its bits.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(8)
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)  # finite, so that the difference of two of them is not NaN

# The language's jitted maximum and sum cannot be called in the interpreter unless all of Triton was imported for it;
# it recognizes their combining functions by identity.
_larger = tl.standard._elementwise_max
_sum = tl.standard._sum_combine


@triton.jit
def _narrow(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 `x` in `dtype`; interpreted as float32 numbers that `dtype` holds exactly."""
    if not INTERPRETED:
        result = x.to(dtype)
    elif dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        result = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        result = x.to(dtype).to(tl.float32)
    return result


@triton.jit
def _load(
    pointer,
    row,
    head,
    count,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``[TILE, DIM]`` from `row` on; MASKED reads only `count` rows, the others are zeros."""
    index = tl.arange(0, TILE)
    # 64 bits for where the tile is, 32 for what is in it.
    base = pointer + (row.to(tl.int64) * HEADS + head) * DIM
    pointers = base + (index[:, None] * (HEADS * DIM) + tl.arange(0, DIM)[None, :])
    if MASKED:
        tile = tl.load(pointers, mask=(index < count)[:, None], other=0.0)
    else:
        tile = tl.load(pointers)
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _store(
    pointer,
    x,
    row,
    head,
    count,
    extent,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Writes `extent` rows: `count` of them from `x`, then zeros."""
    index = tl.arange(0, ROWS)
    base = pointer + (row.to(tl.int64) * HEADS + head) * DIM
    pointers = base + (index[:, None] * (HEADS * DIM) + tl.arange(0, DIM)[None, :])
    x = tl.where((index < count)[:, None], x, 0.0)
    tl.store(pointers, _narrow(x, pointer.dtype.element_ty, INTERPRETED), mask=(index < extent)[:, None])


@triton.jit
def _numbers(pointer, row, head, count, HEADS: tl.constexpr, TILE: tl.constexpr):
    """``[TILE]`` of an array with one number per row and head; zeros past `count`."""
    index = tl.arange(0, TILE)
    return tl.load(pointer + (row.to(tl.int64) * HEADS + head) + index * HEADS, mask=index < count, other=0.0)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * (2 * LOG2E)))


@triton.jit
def _activation(x, NAME: tl.constexpr):
    """Value and derivative, as in `pallas_kernels.activations`; the compiler removes the one that is not used."""
    one = tl.full(x.shape, 1.0, tl.float32)
    if NAME == "gelu":
        phi = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
        value = x * phi
        derivative = phi + x * (tl.exp2(x * x * (-0.5 * LOG2E)) * 0.3989422804014327)
    elif NAME == "gelu_tanh":
        square = x * x
        t = _tanh(x * (square * 0.035677408136300125 + 0.7978845608028654))
        value = 0.5 * x * (1.0 + t)
        inner = square * 0.10703222440890037 + 0.7978845608028654
        derivative = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    elif NAME == "silu":
        s = 1.0 / (1.0 + tl.exp2(-x * LOG2E))
        value = x * s
        derivative = s * (1.0 + x * (1.0 - s))
    elif NAME == "relu":
        value = tl.maximum(x, 0.0)
        derivative = tl.where(x > 0.0, one, 0.0)
    elif NAME == "leaky_relu":
        value = tl.where(x >= 0.0, x, x * 0.01)
        derivative = tl.where(x >= 0.0, one, 0.01)
    elif NAME == "relu_squared":
        positive = tl.maximum(x, 0.0)
        value = positive * positive
        derivative = 2.0 * positive
    elif NAME == "hardswish":
        value = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) * (1 / 6)
        derivative = tl.where(x >= 3.0, one, tl.where(x <= -3.0, 0.0, (2.0 * x + 3.0) * (1 / 6)))
    else:
        tl.static_assert(NAME == "identity")
        value = x
        derivative = one
    return value, derivative


@triton.jit
def _range(
    position,
    count,
    other_count,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WINDOWED: tl.constexpr,
    TILE: tl.constexpr,
):
    """(begin, full, full_end, end) of the streamed rows; only tiles from `full` to `full_end` need no mask."""
    if WINDOWED:
        begin = tl.maximum(position - LEFT, 0)
        end = tl.minimum(position + count + RIGHT, other_count)
        # Every stationary row meets the streamed rows from `inner` to `inner_end`.
        inner = position + count - 1 - LEFT
        inner_end = tl.minimum(position + RIGHT + 1, other_count)
        full = begin + (tl.maximum(inner - begin, 0) + (TILE - 1)) // TILE * TILE
        full_end = full + tl.maximum(inner_end - full, 0) // TILE * TILE
    else:
        begin = other_count * 0
        end = other_count
        full = begin
        full_end = other_count // TILE * TILE
    return begin, full, full_end, end


@triton.jit
def _meets(
    position,
    start,
    other_count,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WINDOWED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """``[ROWS, TILE]`` or ``[1, TILE]``: whether a stationary row meets a row of the tile that begins at `start`."""
    streamed = (start + tl.arange(0, TILE))[None, :]
    mask = streamed < other_count
    if WINDOWED:
        distance = streamed - (position + tl.arange(0, ROWS))[:, None]
        mask = mask & (distance >= -LEFT) & (distance <= RIGHT)
    return mask


@triton.jit
def _forward_loop(
    out,
    top,
    total,
    query,
    k,
    v,
    head,
    position,
    other_row,
    other_count,
    begin,
    end,
    MASKED: tl.constexpr,
    SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WINDOWED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    for start in range(begin, end, TILE):
        key = _load(k, other_row + start, head, other_count - start, HEADS, DIM, TILE, MASKED, INTERPRETED)
        value = _load(v, other_row + start, head, other_count - start, HEADS, DIM, TILE, MASKED, INTERPRETED)
        s = tl.dot(query, tl.trans(key))
        if MASKED:
            mask = _meets(position, start, other_count, LEFT, RIGHT, WINDOWED, ROWS, TILE)
        if ACTIVATION == "softmax":
            s = s * (SCALE * LOG2E)
            if MASKED:
                s = tl.where(mask, s, float("-inf"))
            higher = tl.maximum(top, tl.reduce(s, 1, _larger))
            p = tl.exp2(s - higher[:, None])
            keep = tl.exp2(top - higher)
            total = total * keep + tl.reduce(p, 1, _sum)
            out = out * keep[:, None]
            top = higher
        else:
            p, _ = _activation(s * SCALE, ACTIVATION)
            if MASKED:
                p = tl.where(mask, p, 0.0)
        out = tl.dot(_narrow(p, k.dtype.element_ty, INTERPRETED), value, out)
    return out, top, total


@triton.jit
def forward(
    items,
    q,
    k,
    v,
    out,
    log_sum,
    SCALE: tl.constexpr,
    VALUE_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WINDOWED: tl.constexpr,
    SHARED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Weighted sums of values and, for a softmax, the log-sum-exps."""
    program = tl.program_id(0)
    head = program % HEADS
    item = items + program // HEADS * FIELDS
    row, count, extent = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    position, other_row, other_count = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    query = _load(q, position if SHARED else row, head, count, HEADS, DIM, ROWS, True, INTERPRETED)
    sums = tl.full([ROWS, DIM], 0.0, tl.float32)
    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.full([ROWS], 0.0, tl.float32)
    begin, full, full_end, end = _range(position, count, other_count, LEFT, RIGHT, WINDOWED, TILE)
    if WINDOWED:
        sums, top, total = _forward_loop(
            sums, top, total, query, k, v, head, position, other_row, other_count, begin, tl.minimum(full, end), True,
            SCALE, ACTIVATION, LEFT, RIGHT, WINDOWED, HEADS, DIM, ROWS, TILE, INTERPRETED,
        )  # fmt: skip
    sums, top, total = _forward_loop(
        sums, top, total, query, k, v, head, position, other_row, other_count, full, full_end, False,
        SCALE, ACTIVATION, LEFT, RIGHT, WINDOWED, HEADS, DIM, ROWS, TILE, INTERPRETED,
    )  # fmt: skip
    sums, top, total = _forward_loop(
        sums, top, total, query, k, v, head, position, other_row, other_count, full_end, end, True,
        SCALE, ACTIVATION, LEFT, RIGHT, WINDOWED, HEADS, DIM, ROWS, TILE, INTERPRETED,
    )  # fmt: skip
    if ACTIVATION == "softmax":
        some = total > 0.0
        total = tl.where(some, total, 1.0)
        sums = sums / total[:, None]
        index = tl.arange(0, ROWS)
        numbers = tl.where(some & (index < count), top + tl.log2(total), 0.0)
        tl.store(log_sum + (row.to(tl.int64) * HEADS + head) + index * HEADS, numbers, mask=index < extent)
    _store(out, sums * VALUE_SCALE, row, head, count, extent, HEADS, DIM, ROWS, INTERPRETED)


@triton.jit
def _backward_loop(
    first_sum,
    value_sum,
    own_first,
    own_second,
    own_log_sum,
    own_delta,
    other_first,
    other_second,
    log_sum,
    delta,
    head,
    position,
    first_row,
    other_row,
    other_count,
    begin,
    end,
    KEYS_STAY: tl.constexpr,
    MASKED: tl.constexpr,
    SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WINDOWED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    for start in range(begin, end, TILE):
        left = other_count - start
        first = _load(other_first, first_row + start, head, left, HEADS, DIM, TILE, MASKED, INTERPRETED)
        second = _load(other_second, other_row + start, head, left, HEADS, DIM, TILE, MASKED, INTERPRETED)
        s = tl.dot(own_first, tl.trans(first))
        dp = tl.dot(own_second, tl.trans(second))
        if MASKED:
            mask = _meets(position, start, other_count, LEFT, RIGHT, WINDOWED, ROWS, TILE)
        if ACTIVATION == "softmax":
            if KEYS_STAY:
                exponent = s * (SCALE * LOG2E) - _numbers(log_sum, other_row + start, head, left, HEADS, TILE)[None, :]
                dp = dp - _numbers(delta, other_row + start, head, left, HEADS, TILE)[None, :]
            else:
                exponent = s * (SCALE * LOG2E) - own_log_sum[:, None]
                dp = dp - own_delta[:, None]
            if MASKED:
                exponent = tl.where(mask, exponent, float("-inf"))
            p = tl.exp2(exponent)
            ds = p * dp
        else:
            p, derivative = _activation(s * SCALE, ACTIVATION)
            ds = derivative * dp
            if MASKED:
                p = tl.where(mask, p, 0.0)
                ds = tl.where(mask, ds, 0.0)
        if KEYS_STAY:
            value_sum = tl.dot(_narrow(p, other_first.dtype.element_ty, INTERPRETED), second, value_sum)
        first_sum = tl.dot(_narrow(ds, other_first.dtype.element_ty, INTERPRETED), first, first_sum)
    return first_sum, value_sum


@triton.jit
def backward(
    items,
    own_x,
    own_y,
    other_x,
    other_y,
    log_sum,
    delta,
    x_gradient,
    y_gradient,
    KEYS_STAY: tl.constexpr,
    SCALE: tl.constexpr,
    VALUE_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WINDOWED: tl.constexpr,
    SHARED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """x, y: queries and cotangent on one side, keys and values on the other; `y_gradient` is None unless KEYS_STAY."""
    program = tl.program_id(0)
    head = program % HEADS
    item = items + program // HEADS * FIELDS
    row, count, extent = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    position, other_row, other_count = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    own_row = position if SHARED and not KEYS_STAY else row
    # Shared queries begin at row 0, which is read from the item: with a constant, ptxas makes Hopper's products
    # wait for one another.
    first_row = tl.load(item + 6) if SHARED and KEYS_STAY else other_row
    first = _load(own_x, own_row, head, count, HEADS, DIM, ROWS, True, INTERPRETED)
    second = _load(own_y, row, head, count, HEADS, DIM, ROWS, True, INTERPRETED)
    if ACTIVATION == "softmax" and not KEYS_STAY:
        own_log_sum = _numbers(log_sum, row, head, count, HEADS, ROWS)
        own_delta = _numbers(delta, row, head, count, HEADS, ROWS)
    else:
        own_log_sum = tl.full([ROWS], 0.0, tl.float32)
        own_delta = own_log_sum
    x_sum = tl.full([ROWS, DIM], 0.0, tl.float32)
    y_sum = x_sum
    begin, full, full_end, end = _range(position, count, other_count, LEFT, RIGHT, WINDOWED, TILE)
    if WINDOWED:
        x_sum, y_sum = _backward_loop(
            x_sum, y_sum, first, second, own_log_sum, own_delta, other_x, other_y, log_sum, delta, head, position,
            first_row, other_row, other_count, begin, tl.minimum(full, end), KEYS_STAY, True,
            SCALE, ACTIVATION, LEFT, RIGHT, WINDOWED, HEADS, DIM, ROWS, TILE, INTERPRETED,
        )  # fmt: skip
    x_sum, y_sum = _backward_loop(
        x_sum, y_sum, first, second, own_log_sum, own_delta, other_x, other_y, log_sum, delta, head, position,
        first_row, other_row, other_count, full, full_end, KEYS_STAY, False,
        SCALE, ACTIVATION, LEFT, RIGHT, WINDOWED, HEADS, DIM, ROWS, TILE, INTERPRETED,
    )  # fmt: skip
    x_sum, y_sum = _backward_loop(
        x_sum, y_sum, first, second, own_log_sum, own_delta, other_x, other_y, log_sum, delta, head, position,
        first_row, other_row, other_count, full_end, end, KEYS_STAY, True,
        SCALE, ACTIVATION, LEFT, RIGHT, WINDOWED, HEADS, DIM, ROWS, TILE, INTERPRETED,
    )  # fmt: skip
    _store(x_gradient, x_sum * (SCALE * VALUE_SCALE), row, head, count, extent, HEADS, DIM, ROWS, INTERPRETED)
    if KEYS_STAY:
        _store(y_gradient, y_sum * VALUE_SCALE, row, head, count, extent, HEADS, DIM, ROWS, INTERPRETED)
