"""The notebooks run from top to bottom on phantoms, and are stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))

SMALLER = {
    "case_to_labels": {
        "n_cases=8": "n_cases=5", "epochs=2": "epochs=1", "steps=30": "steps=4",
        "batch_size=30": "batch_size=8",
    },
    "own_loop": {"n_cases=8": "n_cases=5", "steps=60": "steps=8"},
}  # fmt: skip
"""Sizes of a notebook, and the sizes that it runs with here."""


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["case_to_labels", "own_loop"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    for size, smaller in SMALLER[path.stem].items():
        assert any(size in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(size, smaller)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    printed = "".join(output.text for output in last.outputs if output.output_type == "stream")
    assert "Dice" in printed or "whole" in printed
