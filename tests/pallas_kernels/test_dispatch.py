"""Choice of the implementation, its log line, and what is refused."""

import inspect
import logging

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch, gdpa, seed_attention, window_attention
from pallas_kernels.mosaic import target

SPLITS, LENGTHS = jnp.array([0, 8, 16], jnp.int32), jnp.array([5, 8], jnp.int32)
ROWS = jnp.ones((16, 2, 4), jnp.float32)
DENSE = jnp.ones((2, 3, 2, 4), jnp.float32)
KEY_ROWS = jnp.ones((24, 2, 4), jnp.float32)
KEY_SPLITS, KEY_LENGTHS = jnp.array([0, 16, 24], jnp.int32), jnp.array([11, 0], jnp.int32)
SEEDS = jnp.ones((3, 2, 4), jnp.float32)


def call_gdpa(**changes):
    arguments = {"q": ROWS, "k": DENSE, "v": DENSE, "row_splits": SPLITS, "lengths": LENGTHS} | changes
    # Unwrapped: the types that the tests check of every call would refuse some arguments before gdpa does.
    return inspect.unwrap(gdpa)(**arguments)


def call_gdpa_jagged(**changes):
    jagged = {"k": KEY_ROWS, "v": KEY_ROWS, "key_splits": KEY_SPLITS, "key_lengths": KEY_LENGTHS}
    return call_gdpa(**(jagged | changes))


def call_window(**changes):
    arguments = {"q": ROWS, "k": ROWS, "v": ROWS, "row_splits": SPLITS, "lengths": LENGTHS, "window": (1, 1)} | changes
    return inspect.unwrap(window_attention)(**arguments)


def call_seed(**changes):
    arguments = {"q": SEEDS, "k": ROWS, "v": ROWS, "row_splits": SPLITS, "lengths": LENGTHS} | changes
    return inspect.unwrap(seed_attention)(**arguments)


CALLS = pytest.mark.parametrize("call", [call_gdpa, call_gdpa_jagged, call_window, call_seed])


@CALLS
def test_unknown_implementation_says_what_exists(call):
    with pytest.raises(ValueError, match=r"implementation='cudnn' .*'xla', 'reference'"):
        call(implementation="cudnn")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="here the kernels can run")
@pytest.mark.parametrize("call", [call_gdpa, call_gdpa_jagged])
def test_mosaic_says_why_it_cannot_run(call):
    with pytest.raises(ValueError, match="implementation='mosaic' cannot run: the default device is a cpu"):
        call(implementation="mosaic")


@pytest.mark.parametrize("call", [call_gdpa, call_gdpa_jagged])
def test_mosaic_says_which_operands_it_takes(call):
    with target.build_for(target.Target("sm90", 132)):
        with pytest.raises(ValueError, match="take bfloat16 and float16, and q has dtype float32"):
            call(implementation="mosaic")
        narrow = {name: x.astype(jnp.bfloat16) for name, x in zip("qkv", (ROWS, *(2 * [DENSE])), strict=True)}
        with pytest.raises(ValueError, match="take heads of width 32, 64, 128, and q has 4"):
            call_gdpa(implementation="mosaic", **narrow)


def toys(mosaic: str | None, triton: str | None) -> tuple[dispatch.Implementation, ...]:
    """Implementations that return their names, the first two with these refusals."""
    return (
        dispatch.Implementation("mosaic", lambda: "mosaic", lambda q: mosaic),
        dispatch.Implementation("triton", lambda: "triton", lambda q: triton),
        dispatch.Implementation("xla", lambda: "xla"),
    )


def test_where_all_refuse_the_message_has_every_reason():
    with pytest.raises(ValueError, match=r"no implementation can run: 'mosaic' cannot run: wide; 'triton' .* old"):
        dispatch.choose("gdpa", None, toys("wide", "old")[:2], ROWS)


def test_none_falls_to_xla_where_mosaic_cannot_run_and_a_gpu_says_why(caplog, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    dispatch._log_choice.cache_clear()
    reasons = [("too wide", "too old"), ("too wide", None), (None, None), (None, "too old")]
    with caplog.at_level(logging.INFO, logger="pallas_kernels.dispatch"):
        chosen = [dispatch.choose("gdpa", None, toys(mosaic, triton), ROWS)() for mosaic, triton in reasons]
    assert chosen == ["xla", "triton", "mosaic", "mosaic"]
    assert [record.getMessage() for record in caplog.records] == [
        "gdpa: implementation 'xla' chosen for platform 'gpu', for 'mosaic' cannot run: too wide; "
        "'triton' cannot run: too old",
        "gdpa: implementation 'triton' chosen for platform 'gpu', for 'mosaic' cannot run: too wide",
        "gdpa: implementation 'mosaic' chosen for platform 'gpu'",
    ]


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
        call(v={call_gdpa: DENSE, call_gdpa_jagged: KEY_ROWS}.get(call, ROWS).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("call", "changes", "error", "message"),
    [
        (call_gdpa, {"k": DENSE.astype(jnp.bfloat16)}, TypeError, "k has dtype bfloat16 and q float32"),
        (call_gdpa, {"q": ROWS[0]}, ValueError, "q, k, v have shapes"),
        (call_gdpa, {"k": DENSE[0, 0], "v": DENSE[0, 0]}, ValueError, "q, k, v have shapes"),
        (call_gdpa, {"v": DENSE[:, :2]}, ValueError, "q, k, v have shapes"),
        (call_gdpa, {"v": ROWS}, ValueError, "q, k, v have shapes"),
        (call_gdpa, {"k": DENSE[:1], "v": DENSE[:1]}, ValueError, "k holds 1 examples and lengths 2"),
        (call_gdpa, {"k": DENSE[:, :0], "v": DENSE[:, :0]}, ValueError, r"k has shape \(2, 0, 2, 4\); no axis may"),
        (call_gdpa, {"q": ROWS[:0]}, ValueError, r"q has shape \(0, 2, 4\); no axis may be empty"),
        (call_gdpa, {"k": DENSE[..., :2], "v": DENSE[..., :2]}, ValueError, r"k has \(heads, dim\)"),
        (call_gdpa, {"key_splits": KEY_SPLITS}, ValueError, r"key_splits .* \(2, 3, 2, 4\)"),
        (call_gdpa, {"key_lengths": KEY_LENGTHS}, ValueError, r"key_lengths .* \(2, 3, 2, 4\)"),
        (call_gdpa, {"pre_scale": "two"}, ValueError, "pre_scale='two'"),
        (call_gdpa, {"post_scale": float("nan")}, ValueError, "post_scale=nan"),
        (call_gdpa_jagged, {"key_splits": None}, ValueError, "key_splits is None and key_lengths is not"),
        (call_gdpa_jagged, {"key_lengths": None}, ValueError, "key_lengths is None and key_splits is not"),
        (call_gdpa_jagged, {"key_splits": None, "key_lengths": None}, ValueError, "k has 24 rows and q 16"),
        (call_gdpa_jagged, {"key_lengths": KEY_LENGTHS.astype(jnp.int16)}, TypeError, "key_lengths has dtype int16"),
        (call_gdpa_jagged, {"key_splits": KEY_SPLITS.astype(jnp.uint32)}, TypeError, "key_splits has dtype uint32"),
        (call_gdpa_jagged, {"key_splits": KEY_SPLITS[:2]}, ValueError, "key_splits has 2 entries and key_lengths 2"),
        (call_gdpa_jagged, {"key_lengths": KEY_LENGTHS[None]}, ValueError, r"key_lengths has shape \(1, 2\)"),
        (
            call_gdpa_jagged,
            {"key_splits": KEY_SPLITS[:2], "key_lengths": KEY_LENGTHS[:1]},
            ValueError,
            "key_lengths holds 1 examples and lengths 2",
        ),
        (call_gdpa_jagged, {"v": KEY_ROWS[:16]}, ValueError, "q, k, v have shapes"),
        (call_gdpa_jagged, {"k": KEY_ROWS[:0], "v": KEY_ROWS[:0]}, ValueError, r"k has shape \(0, 2, 4\)"),
    ],
)
def test_gdpa_names_the_argument_that_does_not_fit(call, changes, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: call(**changes))


def test_a_scale_may_not_be_traced():
    with pytest.raises(ValueError, match=r"pre_scale=.*known when the call is traced"):
        jax.jit(lambda scale: call_gdpa(pre_scale=scale))(2.0)


def test_self_gdpa_takes_the_offsets_of_the_queries():
    operands = {"k": 2 * ROWS, "v": ROWS}
    named = call_gdpa(**operands, key_splits=SPLITS, key_lengths=LENGTHS)
    assert (call_gdpa(**operands) == named).all()
    assert named[:5].all() and not named[5:8].any()


def test_heads_and_dim_must_fit():
    with pytest.raises(ValueError, match=r"\(heads, dim\)"):
        dispatch.check_operands("x", {"q": ROWS, "k": ROWS[:, :, :2]}, SPLITS, LENGTHS)


@pytest.mark.parametrize(
    ("call", "changes", "message"),
    [
        (call_window, {"q": jnp.repeat(ROWS, 3, axis=1)[:, :3]}, r"k has \(heads, dim\) \(2, 4\) and q \(3, 4\)"),
        (call_window, {"k": ROWS[..., :2], "v": ROWS[..., :2]}, r"k has \(heads, dim\) \(2, 2\) and q \(2, 4\)"),
        (call_window, {"k": ROWS[:8], "v": ROWS[:8]}, r"twice \[rows, key_heads, dim\]"),
        (call_window, {"q": ROWS[0, 0]}, r"q has shape \(4,\)"),
        (call_seed, {"q": SEEDS[0]}, r"must be \[seeds, heads, dim\] or"),
        (call_seed, {"q": jnp.stack([SEEDS] * 3)}, "q holds 3 examples and lengths 2"),
        (call_seed, {"v": ROWS[:8]}, r"twice \[rows, heads, dim\]"),
    ],
)
def test_attention_names_the_argument_that_does_not_fit(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_checks_of_offsets_and_dtypes():
    operands = {"q": ROWS}
    with pytest.raises(TypeError, match="q has dtype int32;"):
        dispatch.check_operands("x", {"q": ROWS.astype(jnp.int32)}, SPLITS, LENGTHS)
    with pytest.raises(TypeError, match=r"lengths has dtype float32; .*int32"):
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
