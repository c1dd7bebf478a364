"""Runs the notebooks of the documentation, on a small local model: every cell, in order."""

import json
from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient
from tiny import SAMPLING_RATE, tone


FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
# The settings in a notebook's first cell, for the tests' checkpoint instead of the demo's.
SETTINGS = {
    "ask.ipynb": {"CLIP": "clip.wav"},
    "fine_tune.ipynb": {"OUT": "out", "STEPS": 2},
    "evaluate.ipynb": {"QUESTIONS": "test.json", "OUT": "out"},
}
SHOWN = {"ask.ipynb": "->", "fine_tune.ipynb": "expected: low", "evaluate.ipynb": "silence"}


def test_all_notebooks_are_run():
    assert SETTINGS.keys() == {path.name for path in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_notebook(name, checkpoint, tmp_path):
    clips = ["clip.wav", *(f"clip{n}.wav" for n in range(8))]  # fewer than six give no interval
    for clip in clips:
        soundfile.write(tmp_path / clip, tone(0.5), SAMPLING_RATE)
    rows = [{"id": clip, "audio_id": clip, "question": "What?", "choices": ["a dog", "a bell"]} for clip in clips]
    rows = [row | {"answer": "a bell", "task": "sound", "category": "c", "difficulty": "easy"} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    given = {"MODEL": checkpoint} | SETTINGS[name]
    assert {line.split(" = ")[0] for line in settings.source.splitlines()} == given.keys()
    settings.source = "\n".join(f"{key} = {value!r}" for key, value in given.items())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    printed = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert SHOWN[name] in json.dumps(printed)
