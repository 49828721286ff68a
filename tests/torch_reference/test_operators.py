"""The padded operators against the definitions that the packed ones are held to: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kunlun_jax.batch import Jagged
from kunlun_jax.torch_reference import operators as padded
from kunlun_jax.torch_reference.batch import pad
from pallas_kernels.activations import ACTIVATIONS
from tests.pallas_kernels import operators
from tests.pallas_kernels.operators import Layout

LENGTHS = (0, 1, 9, 33, 0)
"""Empty ones in front and at the end, a single event, one more than a row block and than a tile."""
TOLERANCE = 1e-12
"""Of the largest value, in float64."""


def torch_run(call, operator, layout: Layout, operands, cotangent):
    """Output and gradients of `call`, jagged ones padded, as arrays."""
    packed = Jagged(None, *layout.offsets)

    def tensor(array, jagged: bool) -> torch.Tensor:
        return pad(packed, array) if jagged else torch.from_numpy(np.array(array))

    inputs = [tensor(x, j).requires_grad_() for x, j in zip(operands, operator.jagged[:-1], strict=True)]
    mask = pad(packed, np.ones(layout.rows, bool))
    out = call(*inputs, mask)
    out.backward(tensor(cotangent, operator.jagged[-1]))
    return [x.detach().numpy() for x in (out, *(x.grad for x in inputs))]


CASES = [
    *(
        pytest.param(
            operators.gdpa(name),
            lambda q, k, v, mask, name=name: padded.gdpa(q, k, v, mask, activation=name, pre_scale=0.7, post_scale=1.3),
            id=name,
        )
        for name in ACTIVATIONS
    ),
    *(
        pytest.param(
            operators.window_attention(*window),
            lambda q, k, v, mask, window=window: padded.window_attention(q, k, v, mask, window=window),
            id=f"window {window}",
        )
        for window in ((0, 0), (1, 0), (3, 9), (10**6, 10**6))
    ),
    pytest.param(operators.seed_attention(), padded.seed_attention, id="seeds"),
]


@pytest.mark.parametrize(("operator", "call"), CASES)
def test_operator(operator, call):
    layout = Layout(LENGTHS)
    with jax.enable_x64(True):
        operands, cotangent, expected = operators.problem(operator, layout, jnp.float64)
        # Of the packed operands, rows that hold no event hold NaN.
        actual = torch_run(call, operator, layout, operands, cotangent)
        packed = Jagged(None, *layout.offsets)
        for name, x, y, jagged in zip("oqkv", actual, expected, operator.jagged[-1:] + operator.jagged, strict=False):
            y = pad(packed, y).numpy() if jagged else np.asarray(y)
            assert np.isfinite(y).all() and x.dtype == np.float64
            bound = TOLERANCE * max(1.0, float(np.abs(y).max(initial=0)))
            np.testing.assert_allclose(x, y, rtol=0, atol=bound, err_msg=name)


def test_there_is_every_activation():
    assert list(padded.ACTIVATIONS) == list(ACTIVATIONS)


def test_finite_padding_changes_nothing():
    rng = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(rng.normal(size=(2, 5, 2, 4))) for _ in range(3))
    mask = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    runs = (
        lambda q, k, v: padded.window_attention(q, k, v, mask, window=(1, 2)),
        lambda q, k, v: padded.seed_attention(q[0], k, v, mask),
        lambda q, k, v: padded.gdpa(q, k, v, mask),
    )
    for index, run in enumerate(runs):
        other = [torch.where(mask[..., None, None], x, 1e3) for x in (q, k, v)]
        changed = (q, *other[1:]) if index == 1 else (other[0], k, v) if index == 2 else other
        torch.testing.assert_close(run(*changed), run(q, k, v), rtol=0, atol=0)
    assert not padded.seed_attention(q[0], k, v, mask)[1].any()
