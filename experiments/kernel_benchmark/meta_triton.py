"""Meta's Triton GDPA for `torch_attention` to measure.

It is taken from a checkout of facebookresearch/ads_model_kernel_library, which is only imported, never copied. Inputs
are packed without gaps as that library wants them. The environment variable GDPA_AUTOTUNE_CONFIG_SET chooses among the
library's own sets of block sizes.
"""

import importlib
import os
import sys
import types
from pathlib import Path

from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.worker import CannotRun

MODULE = "ads_mkl.ops.oss.gdpa.triton.triton_generalized_dot_product_attention"
FILE = Path("gdpa/triton/triton_generalized_dot_product_attention.py")
"""What a checkout holds."""
ACTIVATIONS = {
    "gelu": ("gelu", lambda functions, x: functions.gelu(x)),
    "gelu_tanh": ("gelu_approx", lambda functions, x: functions.gelu(x, approximate="tanh")),
    "silu": ("silu", lambda functions, x: functions.silu(x)),
    "relu": ("relu", lambda functions, x: functions.relu(x)),
    "relu_squared": ("relu_square", lambda functions, x: functions.relu(x).square()),
    "hardswish": ("hardswish", lambda functions, x: functions.hardswish(x)),
    "identity": ("raw", lambda functions, x: x),
}
"""By our name: theirs, and the function by `torch.nn.functional`."""


def load(path: Path):
    """Their function. They import themselves as ``ads_mkl.ops.oss``, so that name is made to mean the checkout."""
    for name, place in (("ads_mkl", []), ("ads_mkl.ops", []), ("ads_mkl.ops.oss", [str(path)])):
        package = types.ModuleType(name)
        package.__path__ = place
        sys.modules.setdefault(name, package)
    return importlib.import_module(MODULE).generalized_dot_product_attention


class Kernel:
    """Their GDPA of a case; `leaves` are q, k, v as it takes them, `pick` takes results apart."""

    def __init__(self, torch, case: Case, operands, cotangent, library: Path):
        if case.activation not in ACTIVATIONS:
            raise CannotRun(f"it has no activation {case.activation!r}")
        self.function = load(library)
        self.note = f"its block sizes {os.environ.get('GDPA_AUTOTUNE_CONFIG_SET', 'default')!r}"
        self.leaves = [x.detach().requires_grad_() for x in operands]
        self.cotangent = cotangent

        def offsets(lengths):
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64).cumsum(0)])
            return starts.to(cotangent.device, torch.int32)

        rows = offsets(case.lengths())
        self.options = {
            "query_offset": rows,
            "key_offset": offsets([case.keys] * case.batch) if case.keys else rows,
            "output_offset": rows,
            "max_seq_len_q": case.max_length,
            "max_seq_len_kv": case.keys or case.max_length,
            "activation": ACTIVATIONS[case.activation][0],
            "qk_scale": case.scale,
        }

    def __call__(self):
        """The output, ``[rows, heads, dim]``."""
        query, key, value = self.leaves
        result = self.function(query=query, key=key, value=value, **self.options)
        return result[0] if isinstance(result, tuple) else result

    def pick(self, result, rows: slice, example: int):
        """Rows of a packed result as ``[rows, heads, dim]``."""
        return result[rows]
