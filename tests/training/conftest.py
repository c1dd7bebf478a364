"""The training command, sets of clips, and rows that are read as a training set."""

import pytest
import soundfile
from open_asqa_source import write_source
from tiny import SAMPLING_RATE, tone
from training_runs import asked, write_clips, write_jsonl

from falcon3_audio.training import sft
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio.training.prepare import open_asqa, open_asqa_rows


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """The cache of `datasets` is in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def launch(recipe, tmp_path):
    """Starts the command; returns its exit code. The run's folder is `tmp_path / "run"`."""

    def launch(*options, config=recipe):
        return sft.main(["--config", config, "--output_dir", str(tmp_path / "run"), *options])

    return launch


@pytest.fixture
def clip_folder(tmp_path):
    """With 0.wav, 1.wav and 2.wav."""
    folder = tmp_path / "set"
    write_clips(folder, 3)
    return folder


@pytest.fixture
def dog_and_bell(tmp_path):
    """dog.wav and bell.wav, also in sounds/."""
    folder = tmp_path / "set"
    for place in (folder, folder / "sounds"):
        place.mkdir()
        for name, pitch in (("dog", 300), ("bell", 800)):
            soundfile.write(place / f"{name}.wav", tone(0.5, pitch), SAMPLING_RATE)
    return folder


@pytest.fixture
def read(clip_folder):
    """The examples of rows that are stored as JSONL."""

    def read(*rows, **entry):
        path = str(write_jsonl(clip_folder / "set.jsonl", list(rows)))
        return list(load_training_data([DataSource(path, **entry)])[0])

    return read


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of different lengths and pitches."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for number, (seconds, pitch) in enumerate(((0.5, 300), (1.3, 500), (0.9, 700))):
        paths.append(str(folder / f"{number}.wav"))
        soundfile.write(paths[-1], tone(seconds, pitch), SAMPLING_RATE)
    return paths


@pytest.fixture
def questions(clips):
    """One clip, several, none, and a different length."""
    return [asked("One?", clips[0]), asked("Two of them?", clips[1], clips[2]), asked("Hi"), asked("?", clips[2])]


@pytest.fixture
def source(tmp_path):
    """Open-ASQA's rows.json, with the audio folders that `open_asqa_source.roots_of` names."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_source(folder)
    return folder


@pytest.fixture
def small_buckets(monkeypatch):
    """Several buckets and shards from a few rows."""
    monkeypatch.setattr(open_asqa_rows, "BUCKET_BYTES", 2000)
    monkeypatch.setattr(open_asqa_rows, "BUFFER_BYTES", 1000)
    monkeypatch.setattr(open_asqa, "SHARD_CLIPS", 2)
