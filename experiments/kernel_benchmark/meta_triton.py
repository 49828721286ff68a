"""Meta's Triton GDPA beside ours, in a process of its own: ``python -m experiments.kernel_benchmark.meta_triton PATH``.

PATH is a checkout of facebookresearch/ads_model_kernel_library, which is only imported, never copied. Reads a JSON
list of ``{"name", "lengths", "max_length", "keys", "heads", "dim", "activation", "scale", "subset"}`` from standard
input and writes a JSON line for each case and pass: ``{"name", "pass", "seconds", "error_ratios", "note"}`` or
``{"name", "pass", "cannot_run"}``. Inputs are N(0, 1) of the same lengths, packed without gaps as that library wants
them. Times are the median of `triton.testing.do_bench`, which uses device events; backward is the gradient alone.
The environment variable GDPA_AUTOTUNE_CONFIG_SET chooses among the library's own sets of block sizes.
"""

import argparse
import importlib
import json
import os
import sys
import time
import types
from pathlib import Path

MODULE = "ads_mkl.ops.oss.gdpa.triton.triton_generalized_dot_product_attention"
FILE = Path("gdpa/triton/triton_generalized_dot_product_attention.py")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_approx",
    "silu": "silu",
    "relu": "relu",
    "relu_squared": "relu_square",
    "hardswish": "hardswish",
    "identity": "raw",
}
"""Our names -> theirs."""


def check(path: Path) -> None:
    """Whether PATH is the checkout, before anything large is imported; FileNotFoundError if not."""
    if not (path / FILE).is_file():
        raise FileNotFoundError(f"{path.name} holds no {FILE}; give a checkout of ads_model_kernel_library")


def load(path: Path):
    """Their function. They import themselves as ``ads_mkl.ops.oss``, so that name is made to mean the checkout."""
    check(path)
    for name, place in (("ads_mkl", []), ("ads_mkl.ops", []), ("ads_mkl.ops.oss", [str(path)])):
        package = types.ModuleType(name)
        package.__path__ = place
        sys.modules[name] = package
    return importlib.import_module(MODULE).generalized_dot_product_attention


def plain(torch, activation, operands, scale):
    """The definition for one example, ``[rows, heads, dim]``, in the dtype of its operands."""
    functions = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "relu": torch.relu,
        "relu_squared": lambda x: torch.relu(x).square(),
        "hardswish": torch.nn.functional.hardswish,
        "identity": lambda x: x,
    }
    q, k, v = operands
    weights = functions[activation](torch.einsum("qhd,khd->hqk", q, k) * scale)
    return torch.einsum("hqk,khd->qhd", weights, v)


def measure(torch, do_bench, function, case):
    """Yields a line for each pass of a case."""
    lengths = torch.tensor(case["lengths"], dtype=torch.int64)
    batch = len(lengths)

    def offsets(counts):
        return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])

    q_splits = offsets(lengths)
    k_splits = q_splits if case["keys"] is None else offsets(torch.full((batch,), case["keys"]))
    device = {"dtype": torch.bfloat16, "device": "cuda"}
    torch.manual_seed(0)
    shapes = [(int(splits[-1]), case["heads"], case["dim"]) for splits in (q_splits, k_splits, k_splits)]
    q, k, v = (torch.randn(shape, **device).requires_grad_() for shape in shapes)
    cotangent = torch.randn(shapes[0], **device)
    arguments = {
        "query": q,
        "key": k,
        "value": v,
        "query_offset": q_splits.to("cuda", torch.int32),
        "key_offset": k_splits.to("cuda", torch.int32),
        "output_offset": q_splits.to("cuda", torch.int32),
        "max_seq_len_q": case["max_length"],
        "max_seq_len_kv": case["keys"] or case["max_length"],
        "activation": ACTIVATIONS[case["activation"]],
        "qk_scale": case["scale"],
    }
    config_set = os.environ.get("GDPA_AUTOTUNE_CONFIG_SET", "default")
    note = f"torch {torch.__version__}, its block sizes {config_set!r}, own process"

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    def ratios(results, splits):
        """max|found - float32| / max|bf16 - float32| over the compared examples, for each result."""
        largest = [[0.0, 0.0] for _ in results]
        for b in case["subset"]:
            at = [slice(int(s[b]), int(s[b + 1])) for s in (q_splits, k_splits, k_splits)]
            exact, rough = [], []
            for dtype, into in ((torch.float32, exact), (torch.bfloat16, rough)):
                own = [x.detach()[i].to(dtype).requires_grad_() for x, i in zip((q, k, v), at, strict=True)]
                out = plain(torch, case["activation"], own, case["scale"])
                if len(results) == 1:
                    into.append(out.detach())
                else:
                    into.extend(torch.autograd.grad(out, own, cotangent[at[0]].to(dtype)))
            for i, (result, split) in enumerate(zip(results, splits, strict=True)):
                found = result.detach()[int(split[b]) : int(split[b + 1])].float()
                largest[i][0] = max(largest[i][0], (found - exact[i]).abs().max().item())
                largest[i][1] = max(largest[i][1], (rough[i].float() - exact[i]).abs().max().item())
        return [a / max(b, 1e-30) for a, b in largest]

    def forward():
        return first(function(**arguments))

    out = forward()
    passes = {
        "forward": (lambda: [forward()], [q_splits]),
        "backward": (
            lambda: torch.autograd.grad(out, (q, k, v), cotangent, retain_graph=True),
            [q_splits, k_splits, k_splits],
        ),
    }
    for pass_, (call, splits) in passes.items():
        line = {"name": case["name"], "pass": pass_, "note": note}
        try:
            error_ratios = ratios(list(call()), splits)
            milliseconds = do_bench(call, warmup=25, rep=100, return_mode="median")
            yield line | {"seconds": milliseconds / 1e3, "error_ratios": error_ratios}
        except Exception as error:  # the reason of this row, and no reason to lose the others
            yield line | {"cannot_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main() -> int:
    """Reads cases, writes lines; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--budget-s", type=float, default=120.0)
    args = parser.parse_args()
    began, cases = time.monotonic(), json.load(sys.stdin)
    why = None
    try:
        check(args.path)
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        do_bench = importlib.import_module("triton.testing").do_bench
        function = load(args.path)
    except Exception as error:  # nothing of it runs here, and every row says so
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    for case in cases:
        if why is None and time.monotonic() - began > args.budget_s:
            break  # cases without a line are tried in the next run
        try:
            if why is not None:
                raise RuntimeError(why)
            if case["activation"] not in ACTIVATIONS:
                raise RuntimeError(f"it has no activation {case['activation']!r}")
            for line in measure(torch, do_bench, function, case):
                print(json.dumps(line), flush=True)
            torch.cuda.empty_cache()
        except Exception as error:
            text = why or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            for pass_ in ("forward", "backward"):
                print(json.dumps({"name": case["name"], "pass": pass_, "cannot_run": text}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
