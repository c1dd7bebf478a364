"""The files of streams: those at URLs are read in place, with the same rows as in a loaded set."""

import gzip
import io
import json
import tarfile
from importlib.util import find_spec
from types import SimpleNamespace

import fsspec
import pytest
from datasets import IterableDataset, load_dataset_builder
from training_runs import write_clips

from falcon3_audio.training.data import open_dataset as module
from falcon3_audio.training.data.open_stream import DatasetShard, first_rows, open_shards


ROWS = [{"text": "007", "n": 1}, {"text": "null", "n": [2]}, {"text": "c", "n": None}]


@pytest.fixture
def far():
    """Stores a file that can only be reached by URL, and returns the URL."""
    files = fsspec.filesystem("memory")

    def put(name, data):
        with files.open(f"/far/{name}", "wb") as file:
            file.write(data)
        return f"memory://far/{name}"

    yield put
    files.rm("/far", recursive=True)


def rows_of(shards, start=0):
    return [row for shard in shards for row in shard.rows(start)]


def as_on_the_hub(monkeypatch, name, files, **config):
    """`datasets` finds these files for the set `owner/set`."""
    builder = SimpleNamespace(name=name, config=SimpleNamespace(data_files=files, name="default", **config))
    monkeypatch.setattr(module, "load_dataset_builder", lambda path, name: builder)


def test_json_of_the_hub(far, monkeypatch):
    """Also compressed; files can be read from a given row on."""
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    urls = [far("0.jsonl", data), far("1.jsonl.gz", gzip.compress(data)), far("2.json", json.dumps(ROWS).encode())]
    as_on_the_hub(monkeypatch, "json", {"train": urls, "test": urls[:1]})
    shards = open_shards("owner/set")
    assert [shard.name for shard in shards] == ["0.jsonl, ", "1.jsonl.gz, ", "2.json, "]
    assert rows_of(shards) == 3 * ROWS and rows_of(shards, 2) == 3 * ROWS[2:]
    assert list(first_rows("owner/set", shards, 4)) == [*ROWS, ROWS[0]]
    assert [shard.name for shard in open_shards("owner/set", split="test")] == [""]


def test_tables_and_tars_of_the_hub(far, monkeypatch, tmp_path):
    as_on_the_hub(monkeypatch, "csv", {"train": [far("0.csv", b"text;n\n007;1\nNA;2\n")]}, sep=";")
    assert rows_of(open_shards("owner/set")) == [{"text": "007", "n": "1"}, {"text": "NA", "n": "2"}]
    (clip,) = write_clips(tmp_path, 1)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in (("a.wav", clip.read_bytes()), ("a.txt", b"007")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    as_on_the_hub(monkeypatch, "webdataset", {"train": [far("0.tar", packed.getvalue())]})
    (row,) = first_rows("owner/set", open_shards("owner/set"))
    assert row == {"audio": clip.read_bytes(), "txt": "007"}


def test_an_audiofolder_of_the_hub(far, monkeypatch, tmp_path):
    """`datasets` streams it only with torchcodec, and leaves the audio files in place."""
    clips = write_clips(tmp_path / "set", 3)
    (tmp_path / "set" / "metadata.jsonl").write_text('{"file_name": "0.wav", "text": "0"}\n')
    builder = load_dataset_builder("audiofolder", data_dir=str(tmp_path / "set"))
    monkeypatch.setattr(module, "load_dataset_builder", lambda path, name: builder)
    if find_spec("torchcodec") is None:
        with pytest.raises(ValueError, match="'owner/set' cannot be read: .*torchcodec"):
            first_rows("owner/set", open_shards("owner/set"))
    url = far("0.wav", clips[0].read_bytes())
    stream = IterableDataset.from_generator(lambda: iter([{"audio": {"bytes": None, "path": url}, "text": "0"}]))
    (row,) = DatasetShard(stream).rows()
    assert row == {"audio": {"bytes": clips[0].read_bytes(), "path": url}, "text": "0"}


def test_what_is_not_to_be_had(far, monkeypatch):
    as_on_the_hub(monkeypatch, "json", {"train": ["memory://far/gone.jsonl"]})
    far("other.jsonl", b"")
    with pytest.raises(ValueError, match="The set 'owner/set' cannot be read: .*gone.jsonl"):
        first_rows("owner/set", open_shards("owner/set"))
    with pytest.raises(ValueError, match="'owner/set' cannot be read: got the split 'test'; expected one of train"):
        open_shards("owner/set", split="test")
