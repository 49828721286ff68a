"""Every notebook runs from start to end, and is stored with the outputs of such a run."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.slowness import slower

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LIMIT_S = 240 * slower()  # of one cell; the whole notebook takes a minute and a half on two idle cores
KERNEL = "interpreter-of-the-tests"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a kernel that is this interpreter, whatever kernels are installed; all its files are temporary."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": KERNEL, "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return KERNEL


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS][:1] == ["01_quickstart.ipynb"]


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path: Path, kernel: str, tmp_path: Path):
    copy = Path(shutil.copy(path, tmp_path))
    notebook = nbformat.read(copy, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    # allow_errors is False: the first cell that raises ends the run with a CellExecutionError, which has its traceback.
    client = NotebookClient(
        notebook, kernel_name=kernel, timeout=int(LIMIT_S), resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)


@each_notebook
def test_notebook_is_stored_with_its_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not stored from one clean run"
    for cell in cells:
        where = f"{path.name}, cell {cell.execution_count}"
        assert cell.outputs, f"{where} is stored without outputs"
        for output in cell.outputs:
            assert output.output_type != "error", f"{where} is stored with an error: {output.get('evalue')}"
            assert output.get("name") != "stderr", f"{where} is stored with warnings: {output.get('text')}"


@each_notebook
def test_notebook_names_no_path_of_a_machine(path: Path):
    for cell in nbformat.read(path, as_version=4).cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            texts.extend(str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
        for text in texts:
            found = re.search(r"(?<![\w.])/(?:home|root|tmp|var|usr|opt|work|mnt|Users|private)/\S*", text)
            assert found is None, f"{path.name} names {found.group()!r}"
