"""What a model lacks of the synthetic law: models that are known to lack one term, and the command on a run."""

import numpy as np
import pytest

from experiments import missing, train
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource
from tests.data.parquet.parquet_sets import random_tables
from tests.experiments.tiny import ANY, ANY_MODEL


@pytest.fixture(scope="module")
def world() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Terms and labels of 20,000 rows."""
    source = SyntheticSource(SyntheticConfig(train_rows=20_000))
    index = np.arange(20_000)
    most = {event.name: 1 for event in source.schema.events}
    return source.click_terms(index), source.rows(index, most).labels[:, 0].astype(np.float64)


@pytest.mark.parametrize("lacks", ["crosses of three", "affinity", "fatigue"])
def test_the_part_that_a_model_lacks_is_found(world, lacks):
    terms, labels = world
    found = {row.term: row for row in missing.missing(sum(terms.values()) - terms[lacks], labels, terms)}
    assert list(found) == list(terms)
    lacking = found.pop(lacks)
    assert lacking.share == pytest.approx(0, abs=1e-9)
    # Told the term with the weight that the law gives it, the model is the law.
    assert lacking.lacking == pytest.approx(lacking.worth, abs=1e-3) and lacking.worth > 0.01
    for row in found.values():
        assert row.share == pytest.approx(1, abs=1e-9)
        # Affinity and old events go together, so one told stands in for the other.
        assert 0 <= row.lacking < 0.5 * lacking.lacking


def test_half_of_a_part_is_half_of_its_share(world):
    terms, labels = world
    half = sum(terms.values()) - 0.5 * terms["old events"]
    found = {row.term: row for row in missing.missing(half, labels, terms)}
    assert found["old events"].share == pytest.approx(0.5, abs=1e-9)
    assert 0 < found["old events"].lacking < found["old events"].worth


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    assert train.main([*ANY, "--run.max-steps", "3", "--run.dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert missing.main(["--run.dir", str(tmp_path / "run"), "--no-progress"]) == 0
    printed = capsys.readouterr().out
    assert "step 3, 70 rows of test" in printed and "crosses of three" in printed
    assert (tmp_path / "run" / "missing.png").stat().st_size > 10_000


def test_other_data_is_refused(tmp_path, capsys):
    random_tables().write(tmp_path / "data")
    more = ["--model.skip-events", "like", "--loader.batch-size", "16", "--run.max-steps", "1"]
    where = ["--data.root", str(tmp_path / "data"), "--data.cache", str(tmp_path / "cache")]
    assert train.main([*ANY_MODEL, *more, *where, "--run.dir", str(tmp_path / "run")]) == 0
    assert missing.main(["--run.dir", str(tmp_path / "run"), "--no-progress"]) == 2
    assert "only for the synthetic world" in capsys.readouterr().err
    assert missing.main(["--run.dir", str(tmp_path), "--no-progress"]) == 2
    assert "config.json: no such file" in capsys.readouterr().err
