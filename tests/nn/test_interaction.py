"""The Wukong expert against its equations, and which tokens each expert of the mixture sees."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.interaction import GlobalInteraction, WukongExpert
from tests.examples import build

TOKENS, DIM = 7, 6
SIZES = {"fm_tokens": 2, "linear_tokens": 3, "rank": 4, "hidden": (5,), "activation": "gelu", "dtype": jnp.float32}
BLOCK = SIZES["fm_tokens"] + SIZES["linear_tokens"]


def mixture(experts: int) -> GlobalInteraction:
    return build(lambda: GlobalInteraction(TOKENS, DIM, experts=experts, rngs=nnx.Rngs(0), **SIZES))


def tokens(batch: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, TOKENS, DIM)), jnp.float32)


def norm(x: np.ndarray, layer: nnx.LayerNorm) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def expert_by_hand(expert: WukongExpert, x: np.ndarray) -> np.ndarray:
    """One example, rows are tokens."""
    u = x / np.linalg.norm(x, axis=-1, keepdims=True) if expert.unit_products else x
    if expert.fm_map is None or expert.fm_norm is None:
        fm = np.array([u[i] @ u[j] for i in range(len(u)) for j in range(i + 1, len(u))])
    else:
        fm = u @ u.T @ np.asarray(expert.fm_map[...], np.float64)  # every pair of tokens, not the low-rank way round
        fm = norm(fm.reshape(-1), expert.fm_norm)
    first, second = expert.deep.layers
    h = fm @ np.asarray(first.kernel[...]) + np.asarray(first.bias[...])
    h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    fmb = (h @ np.asarray(second.kernel[...]) + np.asarray(second.bias[...])).reshape(SIZES["fm_tokens"], DIM)
    lcb = np.asarray(expert.linear.kernel[...]).T @ x
    residual = x if expert.residual is None else np.asarray(expert.residual.kernel[...]).T @ x
    out = np.concatenate([fmb, lcb]) + residual
    return out if expert.norm is None else norm(out, expert.norm)


@pytest.mark.parametrize(
    ("products", "unit_products", "token_norm"),
    [("low_rank", False, True), ("low_rank", True, True), ("pairs", False, False), ("pairs", True, True)],
)
@pytest.mark.parametrize("tokens_in", [TOKENS, BLOCK])
def test_expert_is_a_wukong_layer(tokens_in, products, unit_products, token_norm):
    """The residual is the tokens themselves where as many leave as came in."""
    readings = {"products": products, "unit_products": unit_products, "token_norm": token_norm}
    expert = build(lambda: WukongExpert(tokens_in, DIM, rngs=nnx.Rngs(0), **readings, **SIZES))
    assert (expert.norm is not None) == token_norm
    assert (expert.residual is None) == (tokens_in == BLOCK)
    x = tokens()[:, :tokens_in]
    y = jax.jit(expert)(x)
    assert y.shape == (2, BLOCK, DIM)
    np.testing.assert_allclose(y, [expert_by_hand(expert, e) for e in np.asarray(x, np.float64)], atol=1e-4)


def test_unit_products_do_not_see_how_long_a_token_is_and_stand_zeros():
    expert = build(lambda: WukongExpert(TOKENS, DIM, unit_products=True, rngs=nnx.Rngs(0), **SIZES))
    x = tokens().at[:, 0].set(0.0)
    gradient = jax.grad(lambda x: jnp.square(expert(x)).sum())(x)
    assert np.isfinite(gradient).all()
    deep = [np.asarray(expert.products(scale * x)) for scale in (1.0, 7.0)]
    np.testing.assert_allclose(*deep, atol=1e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_token_t_reaches_expert_t_mod_m_alone(experts):
    module = mixture(experts)
    assert module.tokens_out == experts * BLOCK
    run, x = jax.jit(module), tokens()
    before = np.asarray(run(x)).reshape(2, experts, BLOCK, DIM)
    for t in range(TOKENS):
        after = np.asarray(run(x.at[:, t].add(0.5))).reshape(2, experts, BLOCK, DIM)
        moved = np.abs(after - before).max(axis=(0, 2, 3)) > 1e-4
        np.testing.assert_array_equal(moved, np.arange(experts) == t % experts)


def test_mixture_is_its_experts_side_by_side():
    module, x = mixture(3), tokens()
    parts = [[expert_by_hand(e, b[m::3]) for m, e in enumerate(module.experts)] for b in np.asarray(x, np.float64)]
    np.testing.assert_allclose(jax.jit(module)(x), [np.concatenate(part) for part in parts], atol=1e-4)


@pytest.mark.parametrize("experts", [0, TOKENS + 1])
def test_more_experts_than_tokens_are_refused(experts):
    with pytest.raises(ValueError, match=f"experts is {experts};.* 1 .* {TOKENS} "):
        mixture(experts)


def test_pairs_need_two_tokens():
    with pytest.raises(ValueError, match="fm_products is 'pairs', and an expert has a single token"):
        GlobalInteraction(TOKENS, DIM, experts=4, products="pairs", rngs=nnx.Rngs(0), **SIZES)
