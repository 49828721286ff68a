"""Pictures and tables are what the stored results give: whoever stores new ones runs `make figures`."""

import json
import re

import numpy as np
import pytest
from matplotlib import image

from experiments import figures


@pytest.mark.parametrize("path", figures.pictures(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_picture_has_drifted(path, tmp_path):
    figures.pictures()[path](tmp_path / "now.png")
    stored, now = image.imread(path), image.imread(tmp_path / "now.png")
    assert stored.shape == now.shape, "run `make figures`"
    # Fonts are drawn a little differently by other versions of FreeType.
    assert np.mean(np.abs(stored - now) > 0.1) < 1e-3, "run `make figures`"


def test_every_stored_picture_is_drawn_from_results():
    assert set(figures.RESULTS.glob("*/*.png")) == set(figures.pictures())


@pytest.mark.parametrize("page", figures.PAGES)
def test_no_table_has_drifted(page):
    text = (figures.REPOSITORY / page).read_text()
    assert figures.with_tables(text) == text, "run `make figures`"


def test_the_pages_have_tables():
    found = [name for page in figures.PAGES for name in re.findall("<!-- table (.*) -->", _text(page))]
    assert "cpu/learns" in found and len(found) >= 2


def _text(page: str) -> str:
    return (figures.REPOSITORY / page).read_text()


def test_a_table_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"table cpu/nothing: there is no experiments/results/cpu/nothing\.json"):
        figures.table("cpu/nothing")
    with pytest.raises(ValueError, match="table cpu/pipeline: nothing makes a table of its rows"):
        figures.table("cpu/pipeline")
    with pytest.raises(ValueError, match="table cpu/learns: nothing makes a table of its earlier rows"):
        figures.table("cpu/learns", earlier=True)


def test_every_row_of_a_comparison_stands_in_one_of_its_two_tables():
    one, other = (figures.table("cpu/movielens", earlier=earlier).splitlines()[2:] for earlier in (False, True))
    rows = json.loads((figures.RESULTS / "cpu/movielens.json").read_text())["rows"]
    assert sorted(line.split(" | ")[0].strip("| ") for line in one + other) == sorted({row["name"] for row in rows})


@pytest.mark.parametrize("path", sorted(figures.RESULTS.glob("*/*.json")), ids=lambda path: path.name)
def test_no_result_names_a_folder_of_a_machine(path):
    assert re.findall(r"[\" =]/\w+[/\w.-]*", path.read_text()) == []
