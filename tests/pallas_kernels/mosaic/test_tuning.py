"""Tuned block sizes: what is looked up, what is refused, and which candidates there are."""

import json
import logging

import pytest

from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.mosaic import sm90, sm100, tuning
from pallas_kernels.mosaic.config import Sm90Config
from pallas_kernels.mosaic.tuning import Key

H100 = "NVIDIA H100 80GB HBM3"
KEY = Key("forward", 128, 256, "special")


def write(folder, entries, **changes):
    """A tuning file of one device; the cache of `tuning.read` is by path, so each test has its own folder."""
    content = {"format": 1, "device": H100, "generation": "sm90", "made_by": {}, "entries": entries} | changes
    folder.mkdir(exist_ok=True)
    path = folder / "nvidia-h100-80gb-hbm3.json"
    path.write_text(json.dumps(content))
    return path


def entry(**changes):
    return {
        "pass": "forward",
        "dim": 128,
        "keys": 256,
        "activation": "special",
        "dtype": "bfloat16",
        "config": {"block": 64, "stages": 4},
    } | changes


def test_a_tuned_shape_and_one_that_is_not(tmp_path, caplog):
    write(tmp_path / "tuning", [entry(), entry(keys="jagged", config={"block": 96})])
    with caplog.at_level(logging.INFO):
        assert tuning.config_for(KEY, H100, tmp_path / "tuning") == Sm90Config(block=64, stages=4)
        assert tuning.config_for(Key("forward", 128, "jagged", "special"), H100, tmp_path / "tuning") == Sm90Config(
            block=96
        )
        assert not caplog.records
        other = Key("dkv", 128, 256, "special")
        for _ in range(3):
            assert tuning.config_for(other, H100, tmp_path / "tuning") == tuning.default(other, "sm90")
    assert len(caplog.records) == 1 and "dkv d128 keys 256 special bfloat16 is not tuned for" in caplog.text


def test_a_device_without_a_file_and_one_without_kernels(tmp_path):
    assert tuning.config_for(KEY, "NVIDIA B200", tmp_path) == tuning.default(KEY, "sm100")
    with pytest.raises(ValueError, match="device 'NVIDIA L4'"):
        tuning.config_for(KEY, "NVIDIA L4", tmp_path)


@pytest.mark.parametrize(
    ("entries", "changes", "message"),
    [
        ([entry(config={"blocks": 64})], {}, r"entry 0: config .* blocks; .*block, stages"),
        ([entry(config={"block": 65})], {}, r"entry 0: Config.block is 65"),
        ([entry(config={"block": "64"})], {}, r"entry 0: config.block is '64'; .*int"),
        ([entry(config=[64])], {}, r"entry 0: config is \[64\]"),
        ([entry(config={"block": 256, "stages": 4})], {}, r"entry 0: .* does not fit forward d128"),
        ([entry(**{"pass": "backward"})], {}, r"entry 0: pass is 'backward'; .*forward, dq, dkv"),
        ([entry(keys="some")], {}, r"entry 0: keys is 'some'"),
        ([entry(), entry()], {}, r"entry 1: forward d128 "),
        ([entry(), {"pass": "dq"}], {}, r"entry 1 lacks activation, config, dim, dtype, keys"),
        ([entry(speed=1)], {}, r"entry 0 has the unknown fields speed"),
        ([], {"format": 2}, r"format must be 1"),
        ([], {"generation": "sm80"}, r"generation is 'sm80'; .*sm90, sm100"),
        (
            [entry(config={"score_stages": 2})],
            {},
            r"config .* score_stages; .*block, stages",
        ),
    ],
)
def test_refusals(tmp_path, entries, changes, message):
    path = write(tmp_path, entries, **changes)
    with pytest.raises(ValueError, match=message):
        tuning.read(path)


@pytest.mark.parametrize("pass_", tuning.PASSES)
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("keys", [128, 256, "jagged"])
@pytest.mark.parametrize("generation", ["sm90", "sm100"])
def test_candidates_fit_and_begin_with_the_default(pass_, dim, keys, generation):
    key = Key(pass_, dim, keys, "special")
    found = list(tuning.candidates(key, generation))
    assert found[0] == tuning.default(key, generation) and len(set(found)) == len(found) >= 4
    backward, outputs = pass_ != "forward", 1 + (pass_ == "dkv")
    for config in found:
        assert tuning.fits(key, config)
        if generation == "sm90":
            used = sm90.shared_memory(dim, 2, backward=backward, outputs=outputs, config=config)
        else:
            used = sm100.shared_memory(dim, 2, backward=backward, config=config)
            assert sm100.tensor_memory(dim, backward=backward, outputs=outputs, config=config) <= 512
        assert used <= 226 * 1024
        if config.run > 1:
            assert pass_ != "dkv" and keys != "jagged" and config.block * config.stages >= keys


@pytest.mark.parametrize("pass_", tuning.PASSES)
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize(("operator", "keys"), [("window_attention", 201), ("window_attention", "jagged")])
@pytest.mark.parametrize("generation", ["sm90", "sm100"])
def test_candidates_of_windows(pass_, dim, operator, keys, generation):
    key = Key(pass_, dim, keys, "softmax")
    found = list(tuning.candidates(key, generation, operator))
    assert found[0] == tuning.default(key, generation, operator) and len(set(found)) == len(found) >= 4
    for config in found:
        assert tuning.fits(key, config) and config.run == 1 and config.polynomial == 0
    assert min(config.block for config in found) == 32
    if generation == "sm90":  # on sm_100 tensor memory may hold the sums of one unit alone
        assert {config.units for config in found} == {1, 2}


@pytest.mark.parametrize("generation", ["sm90", "sm100"])
def test_candidates_of_seeds_keep_a_second_unit_out_where_it_has_nothing_to_do(generation):
    rows = (sm90 if generation == "sm90" else sm100).TILE_ROWS
    for seeds in (rows, rows + 1):
        key = Key("forward", 128, seeds, "softmax")
        first = next(tuning.candidates(key, generation, "seed_attention"))
        assert first == tuning.default(key, generation, "seed_attention") and first.units == (1 if seeds == rows else 2)


def test_classes_cover_the_activations_and_slugs_are_names_of_files():
    classes = {name: tuning.activation_class(name) for name in [*ACTIVATIONS, "softmax"]}
    assert {name for name, kind in classes.items() if kind == "special"} == {"gelu", "gelu_tanh", "silu"}
    assert classes["softmax"] == "softmax"
    assert tuning.slug(H100) == "nvidia-h100-80gb-hbm3" and tuning.slug("cpu") == "cpu"
