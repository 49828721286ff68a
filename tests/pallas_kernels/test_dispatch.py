"""Choice of the implementation, its log line, and what is refused."""

import logging

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from pallas_kernels.gdpa.api import gdpa
from pallas_kernels.seed_attention.api import seed_attention
from pallas_kernels.window_attention.api import window_attention

SPLITS, LENGTHS = jnp.array([0, 8, 16], jnp.int32), jnp.array([5, 8], jnp.int32)
ROWS = jnp.ones((16, 2, 4), jnp.float32)
DENSE = jnp.ones((2, 3, 2, 4), jnp.float32)
SEEDS = jnp.ones((3, 2, 4), jnp.float32)


def call_gdpa(**changes):
    arguments = {"q": ROWS, "k": DENSE, "v": DENSE, "row_splits": SPLITS, "lengths": LENGTHS} | changes
    return gdpa(**arguments)


def call_window(**changes):
    arguments = {"q": ROWS, "k": ROWS, "v": ROWS, "row_splits": SPLITS, "lengths": LENGTHS, "window": (1, 1)} | changes
    return window_attention(**arguments)


def call_seed(**changes):
    arguments = {"q": SEEDS, "k": ROWS, "v": ROWS, "row_splits": SPLITS, "lengths": LENGTHS} | changes
    return seed_attention(**arguments)


CALLS = pytest.mark.parametrize("call", [call_gdpa, call_window, call_seed])


@CALLS
def test_unknown_implementation_says_what_exists(call):
    with pytest.raises(ValueError, match=r"implementation='mosaic' does not exist; there are 'xla', 'reference'"):
        call(implementation="mosaic")


def test_the_choice_is_logged_once(caplog):
    dispatch._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="pallas_kernels.dispatch"):
        jax.eval_shape(call_seed)
        jax.eval_shape(call_seed)
        jax.eval_shape(lambda: call_seed(implementation="xla"))
        jax.eval_shape(call_window)
    platform = jax.default_backend()
    assert [record.getMessage() for record in caplog.records] == [
        f"seed_attention: implementation 'xla' chosen for platform '{platform}'",
        f"window_attention: implementation 'xla' chosen for platform '{platform}'",
    ]


@CALLS
def test_one_dtype(call):
    with pytest.raises(TypeError, match="v has dtype bfloat16 and q float32"):
        call(v=(DENSE if call is call_gdpa else ROWS).astype(jnp.bfloat16))


def test_heads_and_dim_must_fit():
    with pytest.raises(ValueError, match=r"\(heads, dim\)"):
        dispatch.check_operands("x", {"q": ROWS, "k": ROWS[:, :, :2]}, SPLITS, LENGTHS)


def test_checks_of_offsets_and_dtypes():
    operands = {"q": ROWS}
    with pytest.raises(TypeError, match="q has dtype int32; it must be floating"):
        dispatch.check_operands("x", {"q": ROWS.astype(jnp.int32)}, SPLITS, LENGTHS)
    with pytest.raises(TypeError, match="lengths has dtype float32; it must be int32"):
        dispatch.check_operands("x", operands, SPLITS, LENGTHS.astype(jnp.float32))
    with pytest.raises(ValueError, match="row_splits has 3 entries and lengths 1"):
        dispatch.check_operands("x", operands, SPLITS, LENGTHS[:1])
    with pytest.raises(ValueError, match="row_splits has shape"):
        dispatch.check_operands("x", operands, SPLITS[None], LENGTHS)
    with pytest.raises(ValueError, match="at least one example"):
        dispatch.check_operands("x", operands, SPLITS[:1], LENGTHS[:0])


def test_values_that_make_no_sense():
    with pytest.raises(ValueError, match=r"window=\(-1, 2\)"):
        call_window(window=(-1, 2))
    with pytest.raises(ValueError, match="activation='swish'"):
        call_gdpa(activation="swish")
