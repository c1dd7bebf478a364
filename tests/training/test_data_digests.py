"""Digests of sets: what they notice, and what they ignore."""

import shutil

import numpy as np
import pytest
from datasets import Dataset
from training_runs import CLIP_FEATURES, clip_row, write_chats, write_clips, write_jsonl

from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data_digests import END, set_digest


def digest(path, **options):
    return set_digest(DataSource(str(path), **options))


def test_an_edit_is_noticed_and_a_move_is_not(tmp_path):
    path = write_chats(tmp_path / "chats", 3)
    before = digest(path)
    assert digest(shutil.copytree(tmp_path / "chats", tmp_path / "moved") / path.name) == before
    assert digest(tmp_path / "chats") == digest(tmp_path / "moved")
    folder = digest(tmp_path / "chats")
    (tmp_path / "chats" / "0.wav").write_bytes(b"other")  # audio and unrelated files are ignored
    (tmp_path / "chats" / "notes.txt").write_text("other")
    assert (digest(path), digest(tmp_path / "chats")) == (before, folder)
    path.write_text(path.read_text().replace("a bell", "a door"))  # the same number of rows and bytes
    assert digest(path) != before and digest(tmp_path / "chats") != folder


def test_sets_that_hold_their_sound_are_not_read_whole(tmp_path):
    path = tmp_path / "set.parquet"
    Dataset.from_dict({"text": ["a dog"], "audio": [np.random.default_rng(0).bytes(3 * END)]}).to_parquet(path)
    data = bytearray(path.read_bytes())
    before = digest(path)

    def changed(place):
        path.write_bytes(bytes(data[:place]) + bytes([data[place] ^ 1]) + bytes(data[place + 1 :]))
        return digest(path) != before

    assert changed(100) and changed(len(data) - 100) and not changed(len(data) // 2)
    path.write_bytes(bytes(data) + b"1")
    assert digest(path) != before


def test_prepared_and_saved_sets(tmp_path):
    (clip,) = write_clips(tmp_path, 1)
    with begin_set(tmp_path / "prepared", {"seed": 0}) as report:
        write_shard(tmp_path / "prepared" / "0.arrow", [clip_row(clip, 2)], CLIP_FEATURES)
        finish_set(tmp_path / "prepared", report, {"0.arrow": 1})
    before = digest(tmp_path / "prepared")
    text = (tmp_path / "prepared" / "report.json").read_text()
    (tmp_path / "prepared" / "report.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    assert digest(tmp_path / "prepared") != before
    for name, answer in (("one", "a dog"), ("two", "a cat")):
        Dataset.from_list([{"text": answer}]).save_to_disk(tmp_path / name)
    assert digest(tmp_path / "one") != digest(tmp_path / "two")


@pytest.mark.parametrize("options", [{"path": "ORG/SET"}, {"streaming": True}])
def test_the_hub_and_streams_have_none(tmp_path, options):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a dog"}])
    assert set_digest(DataSource(**({"path": str(path)} | options))) is None
