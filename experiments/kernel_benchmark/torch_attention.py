"""PyTorch's attention beside ours, in a process of its own: ``python -m experiments.kernel_benchmark.torch_attention``.

``flex``: `flex_attention`, compiled. All sequences are packed into one without gaps, and each query may read one range
of rows: its example inside the window, or the example of its seed. A block mask made from these ranges skips all other
tiles, and full tiles skip the mask. ``sdpa``: `scaled_dot_product_attention` on padded arrays with lengths and window
as a mask, which skips nothing.

Reads a JSON list of ``{"name", "lengths", "window", "seeds", "heads", "dim", "scale", "subset"}`` from standard input
and writes a JSON line for each case, kernel and pass: ``{"name", "implementation", "pass", "seconds", "error_ratios",
"note"}`` or ``{"name", "implementation", "pass", "cannot_run"}``. Inputs are N(0, 1), bf16. Times are medians of
`triton.testing.do_bench`, which uses device events; packing, padding and masks are made beforehand and not timed;
backward is the gradient alone.
"""

import argparse
import importlib
import json
import sys
import time
from typing import Any

BLOCK = 128
"""Rows of a tile of the block mask, on both sides."""
KERNELS = ("flex", "sdpa")
MOST_SCORES = 2**30
"""Scores of an example up to which its error is worked out; their float32 gradients take some 20 bytes each."""


def ranges(torch, case) -> tuple[Any, Any, int]:
    """First and last row that each query may read, int32 and ascending, and the rows of keys.

    Sequences lie one behind the other without gaps, queries likewise; both sides are filled up to whole tiles, and the
    queries that fill up read the last row alone.
    """
    lengths = torch.tensor(case["lengths"], dtype=torch.int64)
    ends = lengths.cumsum(0)
    starts, total = ends - lengths, int(ends[-1])
    rows = -(-total // BLOCK) * BLOCK
    if case["seeds"]:
        low, high = (x.repeat_interleave(case["seeds"]) for x in (starts, ends - 1))
    else:
        at, (left, right) = torch.arange(total), case["window"]
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

    def __init__(self, torch, case, operands, cotangent, *, compiled: bool, differentiable: bool = True):
        module = importlib.import_module("torch.nn.attention.flex_attention")
        self.torch, self.case, q = torch, case, operands[0]
        self.mask = block_mask(torch, case, q.device)
        self.function = module.flex_attention
        if compiled:
            # Each case is compiled anew, and must not fall back to the program that makes all scores.
            torch._dynamo.reset()
            self.function = torch.compile(module.flex_attention, dynamic=False, fullgraph=True)
        q = q if case["seeds"] else self._filled(q, self.mask.shape[-2])
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
        if self.case["seeds"]:
            q = self._filled(q.repeat(len(self.case["lengths"]), 1, 1), self.mask.shape[-2])
        return self.function(q, k, v, block_mask=self.mask, scale=self.case["scale"])

    def pick(self, result, rows: slice, example: int):
        """Rows of a packed result as ``[rows, heads, dim]``."""
        return result[0, :, rows].transpose(0, 1)


class Padded:
    """`scaled_dot_product_attention` on padded arrays with a mask; see `Flex`."""

    note = "padded to the longest; the window as a mask, does not skip"

    def __init__(self, torch, case, operands, cotangent, *, compiled: bool, differentiable: bool = True):
        self.torch, self.case = torch, case
        lengths = torch.tensor(case["lengths"], device=operands[0].device)
        self.rows = -(-int(lengths.max()) // 8) * 8
        at = torch.arange(self.rows, device=lengths.device)
        full = bool((lengths == self.rows).all())
        self.mask = None if full else (at < lengths[:, None])[:, None, None]
        if case["window"]:
            offset = at - at[:, None]
            inside = ((offset >= -case["window"][0]) & (offset <= case["window"][1]))[None, None]
            self.mask = inside if full else self.mask & inside
            # A row behind the end reads itself, for a row that reads nothing is NaN, and so are then all gradients.
            self.mask = self.mask | (offset == 0)
        self.starts = (lengths.cumsum(0) - lengths).tolist()
        q = operands[0] if case["seeds"] else self._pad(operands[0])
        self.leaves = [x.detach().requires_grad_(differentiable) for x in (q, *map(self._pad, operands[1:]))]
        if case["seeds"]:
            cotangent = cotangent.reshape(len(self.starts), case["seeds"], *cotangent.shape[1:]).transpose(1, 2)
        else:
            cotangent = self._pad(cotangent)
        self.cotangent = cotangent.contiguous()

    def _pad(self, x):
        """``[rows, heads, dim]`` as ``[batch, heads, padded rows, dim]``."""
        padded = x.new_zeros(len(self.starts), self.rows, *x.shape[1:])
        for b, (start, length) in enumerate(zip(self.starts, self.case["lengths"], strict=True)):
            padded[b, :length] = x[start : start + length]
        return padded.transpose(1, 2).contiguous()

    def __call__(self):
        """The output, ``[batch, heads, queries, dim]``."""
        q, k, v = self.leaves
        if self.case["seeds"]:
            q = q.transpose(0, 1)[None].expand(len(self.starts), -1, -1, -1)
        attention = self.torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, attn_mask=self.mask, scale=self.case["scale"])

    def pick(self, result, rows: slice, example: int):
        """Rows of an example of a padded result as ``[rows, heads, dim]``."""
        return result[example, :, : rows.stop - rows.start].transpose(0, 1)


def plain(torch, case, operands):
    """The definition for one example, ``[rows, heads, dim]``, in the dtype of its operands."""
    q, k, v = operands
    scores = torch.einsum("qhd,khd->hqk", q, k) * case["scale"]
    if case["window"]:
        offset = torch.arange(len(k), device=k.device) - torch.arange(len(q), device=q.device)[:, None]
        scores = scores.masked_fill((offset < -case["window"][0]) | (offset > case["window"][1]), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def error_ratios(torch, case, kernel, operands, cotangent, results) -> list[float] | None:
    """max|found - float32| / max|bf16 - float32| over the compared examples, for each result; None for long ones.

    One result is the output, three are gradients; that of shared seeds is left out, as a few examples do not tell it.
    """
    queries = case["seeds"] or max(case["lengths"])
    if case["heads"] * queries * max(case["lengths"]) > MOST_SCORES:
        return None
    kept = slice(1 if case["seeds"] and len(results) > 1 else 0, None)
    largest = [[0.0, 0.0] for _ in results[kept]]
    ends = torch.tensor(case["lengths"]).cumsum(0).tolist()
    for b in case["subset"]:
        keys = slice(ends[b] - case["lengths"][b], ends[b])
        out = slice(b * case["seeds"], (b + 1) * case["seeds"]) if case["seeds"] else keys
        own = [operands[0] if case["seeds"] else operands[0][keys], operands[1][keys], operands[2][keys]]
        exact, rough = [], []
        for dtype, into in ((torch.float32, exact), (torch.bfloat16, rough)):
            leaves = [x.detach().to(dtype).requires_grad_() for x in own]
            found = plain(torch, case, leaves)
            backward = len(results) > 1
            into += torch.autograd.grad(found, leaves, cotangent[out].to(dtype)) if backward else [found.detach()]
        places = [out] if len(results) == 1 else [keys] * 3
        compared = list(zip(results, places, exact, rough, strict=True))[kept]
        for most, (result, place, e, r) in zip(largest, compared, strict=True):
            picked = kernel.pick(result.detach(), place, b).float()
            most[0] = max(most[0], (picked - e).abs().max().item())
            most[1] = max(most[1], (r.float() - e).abs().max().item())
    return [a / max(b, 1e-30) for a, b in largest]


def measure(torch, do_bench, name: str, case, device: str = "cuda", *, compiled: bool = True, differentiable=True):
    """Yields a line for each pass of a case by a kernel of `KERNELS`."""
    torch.manual_seed(0)
    total, tail = sum(case["lengths"]), (case["heads"], case["dim"])
    queries = len(case["lengths"]) * case["seeds"] if case["seeds"] else total
    shapes = [(case["seeds"] or total, *tail), (total, *tail), (total, *tail), (queries, *tail)]
    *operands, cotangent = (torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in shapes)
    kernel = {"flex": Flex, "sdpa": Padded}[name](
        torch, case, operands, cotangent, compiled=compiled, differentiable=differentiable
    )
    out = kernel()
    passes = {
        "forward": lambda: [kernel()],
        "backward": lambda: torch.autograd.grad(out, kernel.leaves, kernel.cotangent, retain_graph=True),
    }
    for pass_, call in passes.items():
        note = f"torch {torch.__version__}, {kernel.note}; own process"
        line = {"name": case["name"], "implementation": name, "pass": pass_, "note": note}
        try:
            ratios = error_ratios(torch, case, kernel, operands, cotangent, list(call()))
            milliseconds = do_bench(call, warmup=25, rep=100, return_mode="median")
            yield line | {"seconds": milliseconds / 1e3, "error_ratios": ratios}
        except Exception as error:  # the reason of this row, and no reason to lose the others
            yield line | {"cannot_run": reason(error)}


def reason(error: BaseException) -> str:
    """Type and first lines of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> int:
    """Reads cases, writes lines; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="+", choices=KERNELS)
    parser.add_argument("--budget-s", type=float, default=120.0)
    args = parser.parse_args()
    began, cases = time.monotonic(), json.load(sys.stdin)
    why = None
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        do_bench = importlib.import_module("triton.testing").do_bench
    except Exception as error:  # nothing of it runs here, and every row says so
        why = reason(error)
    for case in cases:
        for name in args.kernels:
            if why is None and time.monotonic() - began > args.budget_s:
                return 0  # cases without a line are tried in the next run
            try:
                if why is not None:
                    raise RuntimeError(why)
                for line in measure(torch, do_bench, name, case):
                    print(json.dumps(line), flush=True)
                torch.cuda.empty_cache()
            except Exception as error:
                for pass_ in ("forward", "backward"):
                    line = {"name": case["name"], "implementation": name, "pass": pass_}
                    print(json.dumps(line | {"cannot_run": why or reason(error)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
