"""`KunlunConfig`: what it refuses, and the layer plan against its definition."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from kunlun_jax.models.config import EventConfig, KunlunConfig, layer_plan

COMP_SKIP = ("pool+ffn", "attention")
FULL = ("pool+ffn+attention",)


def plan_of(pattern=COMP_SKIP, *, layers=4, event_layers=4, final_pool=True, reading="ffn_first") -> list[str]:
    config = KunlunConfig(layers=layers, pattern=pattern, final_pool=final_pool, order=reading)
    order = ("pool", "ffn", "attention")
    return ["+".join(p for p in order if p in parts) for parts in layer_plan(config, EventConfig(layers=event_layers))]


def test_comp_skip_is_the_default():
    assert KunlunConfig().pattern == COMP_SKIP
    assert plan_of(layers=5, event_layers=5) == ["pool+ffn", "attention"] * 2 + ["pool+ffn"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The last layer's attention would change events that nothing pools any more.
        ({}, ["pool+ffn", "attention", "pool+ffn", ""]),
        ({"pattern": FULL, "layers": 2, "event_layers": 2}, ["pool+ffn+attention", "pool+ffn"]),
        # A type that stops early: its changed events are pooled once more, or are not made at all.
        ({"event_layers": 2}, ["pool+ffn", "attention", "pool", ""]),
        ({"event_layers": 2, "final_pool": False}, ["pool+ffn", "", "", ""]),
        ({"event_layers": 3}, ["pool+ffn", "attention", "pool+ffn", ""]),
        ({"event_layers": 1}, ["pool+ffn", "", "", ""]),
        ({"event_layers": 9}, ["pool+ffn", "attention", "pool+ffn", ""]),
        ({"pattern": ("pool",), "event_layers": 2}, ["pool", "pool", "", ""]),
        ({"pattern": ("pool", "")}, ["pool", "", "pool", ""]),
        ({"pattern": ("pool", "ffn", "attention"), "event_layers": 3}, ["pool", "ffn", "attention", "pool"]),
        ({"pattern": FULL, "event_layers": 1}, ["pool+ffn+attention", "pool", "", ""]),
    ],
)
def test_plans(options, expected):
    assert plan_of(**options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Pooling reads what came into the layer, so the last FFN too would change events that nothing pools.
        ({}, ["pool+ffn", "attention", "pool", ""]),
        ({"pattern": FULL, "layers": 2, "event_layers": 2}, ["pool+ffn+attention", "pool"]),
        ({"event_layers": 2, "final_pool": False}, ["pool", "", "", ""]),
        ({"event_layers": 3}, ["pool+ffn", "attention", "pool+ffn", "pool"]),
        ({"event_layers": 1}, ["pool+ffn", "pool", "", ""]),
        ({"event_layers": 1, "final_pool": False}, ["pool", "", "", ""]),
    ],
)
def test_plans_that_pool_first(options, expected):
    assert plan_of(reading="pool_first", **options) == expected


PATTERNS = [
    (first, *rest)
    for first in ("pool", "pool+ffn", "pool+attention+ffn")
    for rest in itertools.chain([()], itertools.product(("", "pool", "ffn", "attention", "pool+ffn"), repeat=2))
]


def read_by_pooling(written: list[set[str]], layers: int, *, final_pool: bool, order: str) -> list[set[str]]:
    """Pooling, and the updates that lie on the way of the events to one, layer by layer."""
    written = written + [set() for _ in range(layers - len(written))]
    kept: list[set[str]] = [set() for _ in range(layers)]
    way: list[tuple[int, str]] = []
    pooled = 0
    stop = len([parts for parts in written if parts])
    for i, parts in enumerate(written):
        personalized = way + ([(i, "ffn")] if "ffn" in parts else [])
        source = personalized if order == "ffn_first" else way
        if "pool" in parts or (final_pool and i == stop and len(way) > pooled):
            kept[i].add("pool")
            pooled = len(source)
            for j, part in source:
                kept[j].add(part)
        way = personalized + ([(i, "attention")] if "attention" in parts else [])
    return kept


@pytest.mark.parametrize("order", ["ffn_first", "pool_first"])
@pytest.mark.parametrize("final_pool", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_an_update_is_kept_just_if_a_pooling_reads_it(layers, final_pool, order):
    for pattern, event_layers in itertools.product(PATTERNS, (1, 2, 3, 7)):
        if "" in pattern:  # then the last written layer does not tell where the type stops
            continue
        written = [set(pattern[i % len(pattern)].split("+")) - {""} for i in range(min(layers, event_layers))]
        config = KunlunConfig(layers=layers, pattern=pattern, final_pool=final_pool, order=order)
        plan = layer_plan(config, EventConfig(layers=event_layers))
        expected = read_by_pooling(written, layers, final_pool=final_pool, order=order)
        assert [set(parts) for parts in plan] == expected, (pattern, event_layers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": ("pool", "pool+fnn")}, r"pattern\[1\] is 'pool\+fnn'; join \['pool', 'ffn', 'attention'\] with"),
        ({"pattern": ()}, r"pattern is \(\); its first layer must have 'pool'"),
        ({"pattern": ("ffn", "pool")}, "its first layer must have 'pool', else no H to start from"),
        ({"event": EventConfig(dim=6, heads=2)}, r"event\.dim is 6, heads 2;"),
        ({"events": {"click": EventConfig(dim=9, heads=2)}}, r"click\.dim is 9, heads 2"),
        ({"dropout": 1.0}, r"dropout is 1\.0; it must lie in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout is -0\.1"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        KunlunConfig(**fields)


def test_event_types():
    available = ("view", "click", "like")
    assert KunlunConfig().event_types(available) == available
    assert KunlunConfig(skip_events=("click",)).event_types(available) == ("view", "like")
    assert KunlunConfig(skip_events=("*",)).event_types(available) == ()


@pytest.mark.parametrize("field", ["skip_events", "events"])
def test_names_that_the_schema_lacks(field):
    names = ("view", "buy") if field == "skip_events" else {"view": EventConfig(), "buy": EventConfig()}
    with pytest.raises(ValueError, match=rf"model\.{field} names \['buy'\]; the schema's event types are \['view'\]"):
        KunlunConfig(**{field: names}).event_types(("view",))


def test_each_event_type_gets_its_own():
    own = EventConfig(dim=32, heads=4)
    config = KunlunConfig(events={"click": own})
    assert config.for_event("click") is own and config.for_event("view") is config.event


def test_compute_dtype():
    assert KunlunConfig(dtype="bfloat16").compute_dtype == jnp.bfloat16
    assert KunlunConfig(dtype="auto").compute_dtype == jnp.float32  # on a CPU


def test_float64_needs_x64():
    with pytest.raises(
        ValueError, match=r"model\.dtype is 'float64', in which JAX computes only under jax\.enable_x64"
    ):
        _ = KunlunConfig(dtype="float64").compute_dtype
    with jax.enable_x64(True):
        assert KunlunConfig(dtype="float64").compute_dtype == jnp.float64
