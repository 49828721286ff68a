"""Kernels called from PyTorch to compare with, measured in their own worker: PyTorch's attention and Meta's GDPA.

``flex``: `flex_attention`, compiled. All sequences are packed into one without gaps, and each query may read one range
of rows: its example inside the window, or the example of its seed. A block mask made from these ranges skips all other
tiles, and full tiles skip the mask. ``sdpa``: `scaled_dot_product_attention` on padded arrays with lengths and window
as a mask, which skips nothing. ``meta-triton``: see `meta_triton`.

Inputs are N(0, 1), bf16, of the lengths of the case. Times are medians of `triton.testing.do_bench`, which uses device
events; packing, padding and masks are made beforehand and not timed; backward is only the gradient.
"""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.kernel_benchmark import meta_triton
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import Row
from experiments.kernel_benchmark.worker import Message, reason

BLOCK = 128
"""Rows of a tile of the block mask, on both sides."""
META = "meta-triton"
NAMES = (META, "flex", "sdpa")
MOST_SCORES = 2**30
"""Scores of an example up to which its error is worked out; their float32 gradients take some 20 bytes each."""


def refusal(row: Row, library: Path | None) -> str | None:
    """Why a row is not measured at all, if so; `library` is Meta's checkout."""
    if row.implementation not in NAMES:
        return None
    if row.implementation == META and library is None:
        return "not asked for: give --peers.ads-kernel-library PATH"
    if row.implementation == META and library is not None and not (library / meta_triton.FILE).is_file():
        return f"{library.name} holds no {meta_triton.FILE}; give a checkout of ads_model_kernel_library"
    if row.case.block or (row.implementation == META) != (row.case.operator == "gdpa"):
        return f"it is not measured for {row.case.operator}"
    return None


def ranges(torch, case) -> tuple[Any, Any, int]:
    """First and last row that each query may read, int32 and ascending, and the rows of keys.

    Sequences lie one after another without gaps, queries likewise; both sides are filled up to whole tiles, and the
    queries that fill up read only the last row.
    """
    lengths = torch.tensor(case.lengths(), dtype=torch.int64)
    ends = lengths.cumsum(0)
    starts, total = ends - lengths, int(ends[-1])
    rows = -(-total // BLOCK) * BLOCK
    if case.seeds:
        low, high = (x.repeat_interleave(case.seeds) for x in (starts, ends - 1))
    else:
        at, (left, right) = torch.arange(total), case.window
        low = torch.maximum(at - left, starts.repeat_interleave(lengths))
        high = torch.minimum(at + right, ends.repeat_interleave(lengths) - 1)
    missing = torch.full((-len(low) % BLOCK,), rows - 1, dtype=torch.int64)
    return *(torch.cat([x, missing]).to(torch.int32) for x in (low, high)), rows


def blocks(torch, low, high, rows: int) -> tuple[Any, Any]:
    """Which tiles of keys a tile of queries needs under a mask, and which it needs whole: bool ``[tiles, tiles]``."""
    first = torch.arange(0, rows, BLOCK, device=low.device)[None]
    last = first + BLOCK - 1
    low, high = low.reshape(-1, BLOCK), high.reshape(-1, BLOCK)
    # Ranges ascend and overlap or touch, so a tile of queries reads from the first one's low to the last one's high.
    some = (last >= low[:, :1]) & (first <= high[:, -1:])
    whole = (first >= low[:, -1:]) & (last <= high[:, :1])
    return some & ~whole, whole


def block_mask(torch, case, device):
    """The block mask of a case for `flex_attention`."""
    module = importlib.import_module("torch.nn.attention.flex_attention")
    low, high, rows = ranges(torch, case)
    low, high = low.to(device), high.to(device)

    def listed(needed):
        order = needed.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return needed.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]

    partly, whole = blocks(torch, low, high, rows)
    return module.BlockMask.from_kv_blocks(
        *listed(partly),
        *listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, i, j: (j >= low[i]) & (j <= high[i]),
        seq_lengths=(len(low), rows),
    )


class Flex:
    """`flex_attention` over one packed sequence; `leaves` are q, k, v as it takes them, `pick` takes results apart."""

    note = "one packed sequence, block mask of the ranges"

    def __init__(self, torch, case, operands, cotangent, *, compiled: bool = True, differentiable: bool = True):
        module = importlib.import_module("torch.nn.attention.flex_attention")
        self.torch, self.case, q = torch, case, operands[0]
        self.mask = block_mask(torch, case, q.device)
        self.function = module.flex_attention
        if compiled:
            # Each case is compiled again, and must not fall back to the program that makes all scores.
            torch._dynamo.reset()
            self.function = torch.compile(module.flex_attention, dynamic=False, fullgraph=True)
        q = q if case.seeds else self._filled(q, self.mask.shape[-2])
        k, v = (self._filled(x, self.mask.shape[-1]) for x in operands[1:])
        self.leaves = [x.detach().requires_grad_(differentiable) for x in (q, k, v)]
        self.cotangent = self._filled(cotangent, self.mask.shape[-2])

    def _filled(self, x, rows):
        """``[rows, heads, dim]`` as ``[1, heads, filled rows, dim]``."""
        x = self.torch.nn.functional.pad(x, (0, 0, 0, 0, 0, rows - x.shape[0]))
        return x.transpose(0, 1)[None].contiguous()

    def __call__(self):
        """The output, ``[1, heads, queries, dim]``."""
        q, k, v = self.leaves
        if self.case.seeds:
            q = self._filled(q.repeat(self.case.batch, 1, 1), self.mask.shape[-2])
        return self.function(q, k, v, block_mask=self.mask, scale=self.case.scale)

    def pick(self, result, rows: slice, example: int):
        """Rows of a packed result as ``[rows, heads, dim]``."""
        return result[0, :, rows].transpose(0, 1)


class Padded:
    """`scaled_dot_product_attention` on padded arrays with a mask; see `Flex`."""

    note = "padded to the longest; the window as a mask, does not skip"

    def __init__(self, torch, case, operands, cotangent):
        self.torch, self.case = torch, case
        lengths = torch.tensor(case.lengths(), device=operands[0].device, dtype=torch.int64)
        self.rows = -(-int(lengths.max()) // 8) * 8
        at = torch.arange(self.rows, device=lengths.device)
        full = bool((lengths == self.rows).all())
        self.mask = None if full else (at < lengths[:, None])[:, None, None]
        if case.window:
            offset = at - at[:, None]
            inside = ((offset >= -case.window[0]) & (offset <= case.window[1]))[None, None]
            self.mask = inside if full else self.mask & inside
            # A row after the end reads itself, since a row that reads nothing is NaN, and then so are all gradients.
            self.mask = self.mask | (offset == 0)
        self.starts = (lengths.cumsum(0) - lengths).tolist()
        q = operands[0] if case.seeds else self._pad(operands[0])
        self.leaves = [x.detach().requires_grad_() for x in (q, *map(self._pad, operands[1:]))]
        if case.seeds:
            cotangent = cotangent.reshape(len(self.starts), case.seeds, *cotangent.shape[1:]).transpose(1, 2)
        else:
            cotangent = self._pad(cotangent)
        self.cotangent = cotangent.contiguous()

    def _pad(self, x):
        """``[rows, heads, dim]`` as ``[batch, heads, padded rows, dim]``."""
        padded = x.new_zeros(len(self.starts), self.rows, *x.shape[1:])
        for b, (start, length) in enumerate(zip(self.starts, self.case.lengths(), strict=True)):
            padded[b, :length] = x[start : start + length]
        return padded.transpose(1, 2).contiguous()

    def __call__(self):
        """The output, ``[batch, heads, queries, dim]``."""
        q, k, v = self.leaves
        if self.case.seeds:
            q = q.transpose(0, 1)[None].expand(len(self.starts), -1, -1, -1)
        attention = self.torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, attn_mask=self.mask, scale=self.case.scale)

    def pick(self, result, rows: slice, example: int):
        """Rows of an example of a padded result as ``[rows, heads, dim]``."""
        return result[example, :, : rows.stop - rows.start].transpose(0, 1)


def plain(torch, case: Case, operands):
    """The definition for one example, ``[rows, heads, dim]``, in the dtype of its operands."""
    q, k, v = operands
    scores = torch.einsum("qhd,khd->hqk", q, k) * case.scale
    if case.activation != "softmax":
        weights = meta_triton.ACTIVATIONS[case.activation][1](torch.nn.functional, scores)
        return torch.einsum("hqk,khd->qhd", weights, v)
    if case.window:
        offset = torch.arange(len(k), device=k.device) - torch.arange(len(q), device=q.device)[:, None]
        scores = scores.masked_fill((offset < -case.window[0]) | (offset > case.window[1]), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def error_ratios(torch, case: Case, kernel, operands, cotangent, results) -> list[float] | None:
    """max|found - float32| / max|bf16 - float32| over the compared examples, for each result; None for long ones.

    One result is the output, three are gradients; that of shared seeds is left out, as a few examples do not tell it.
    """
    lengths = case.lengths()
    longest = int(lengths.max())
    if case.heads * (case.seeds or longest) * (case.keys or longest) > MOST_SCORES:
        return None
    backward = len(results) > 1
    kept = slice(1 if case.seeds and backward else 0, None)
    largest = np.zeros((len(results[kept]), 2))
    own_rows = [0, *lengths.cumsum().tolist()]
    for b in case.compared():
        rows = slice(own_rows[b], own_rows[b + 1])
        keys = slice(b * case.keys, (b + 1) * case.keys) if case.keys else rows
        out = slice(b * case.seeds, (b + 1) * case.seeds) if case.seeds else rows
        own = [operands[0] if case.seeds else operands[0][rows], operands[1][keys], operands[2][keys]]
        exact, rough = [], []
        for dtype, into in ((torch.float32, exact), (torch.bfloat16, rough)):
            leaves = [x.detach().to(dtype).requires_grad_() for x in own]
            found = plain(torch, case, leaves)
            into += torch.autograd.grad(found, leaves, cotangent[out].to(dtype)) if backward else [found.detach()]
        places = [rows, keys, keys] if backward else [out]
        compared = list(zip(results, places, exact, rough, strict=True))[kept]
        for i, (result, place, e, r) in enumerate(compared):
            picked = kernel.pick(result.detach(), place, b).float()
            errors = [(x - e).abs().max().item() for x in (picked, r.float())]
            largest[i] = np.maximum(largest[i], errors)  # NaN stays NaN
    return [float(a / max(b, 1e-30)) for a, b in largest]


def inputs(torch, case: Case, device: str) -> tuple[list[Any], Any]:
    """q, k, v without gaps, ``[rows, heads, dim]``, and the cotangent of the output."""
    torch.manual_seed(0)
    total, tail = int(case.lengths().sum()), (case.heads, case.dim)
    keys = case.batch * case.keys if case.keys else total
    outputs = case.batch * case.seeds if case.seeds else total
    shapes = [(rows, *tail) for rows in (case.seeds or total, keys, keys, outputs)]
    *operands, cotangent = (torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in shapes)
    return operands, cotangent


def time_passes(torch, do_bench, kernel, operands, cotangent, rows: list[Row]) -> Iterator[Message]:
    """Times a kernel, which is a `Flex`, a `Padded` or a `meta_triton.Kernel`; `rows` are passes of one case."""
    for row in rows:
        yield Message((row,))
        try:
            call = lambda: [kernel()]  # noqa: E731
            if row.pass_ == "backward":
                (out,) = call()
                call = functools.partial(torch.autograd.grad, out, kernel.leaves, kernel.cotangent, retain_graph=True)
            ratios = error_ratios(torch, row.case, kernel, operands, cotangent, list(call()))
            seconds = do_bench(call, warmup=25, rep=100, return_mode="median") / 1e3
        except Exception as error:  # the reason of this row, and no reason to lose the others
            yield Message((row,), {"cannot_run": reason(error)})
            check_device(torch)
            continue
        note = f"torch {torch.__version__}, {kernel.note}; own process"
        known = {} if ratios else {"no_error_ratio": "the scores of an example do not fit in float32"}
        yield Message((row,), {"seconds": seconds, "error_ratios": ratios, "note": note} | known)


def check_device(torch) -> None:
    """Raises if the device is lost, as after an illegal access to memory: the process must end."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(rows: list[Row], library: Path | None) -> Iterator[Message]:
    """Job: times rows of `NAMES` on a CUDA device; `library` is Meta's checkout."""
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        do_bench = importlib.import_module("triton.testing").do_bench
    except Exception as error:  # nothing of it runs here, and every row says so
        yield Message(tuple(rows), {"cannot_run": reason(error)})
        return
    for case, name in dict.fromkeys((row.case, row.implementation) for row in rows):
        same = [row for row in rows if (row.case, row.implementation) == (case, name)]
        yield Message(tuple(same))
        try:
            operands, cotangent = inputs(torch, case, "cuda")
            if name == META and library is not None:
                kernel = meta_triton.Kernel(torch, case, operands, cotangent, library)
            else:
                kernel = {"flex": Flex, "sdpa": Padded}[name](torch, case, operands, cotangent)
        except Exception as error:
            yield Message(tuple(same), {"cannot_run": reason(error)})
            check_device(torch)
            continue
        yield from time_passes(torch, do_bench, kernel, operands, cotangent, same)
        del kernel, operands, cotangent
        torch.cuda.empty_cache()
