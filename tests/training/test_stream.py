"""The order of streams: every row once in a pass, split among readers, by weight, and the same after a stop."""

import json
from collections import Counter
from itertools import islice, pairwise, takewhile

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from training_runs import ANSWERS, CLIP_FEATURES, assistant, clip_row, heard, user, write_clips, write_jsonl

from falcon3_audio.training.augmentation import Augmentation, Augmenter
from falcon3_audio.training.data.sampler import PASS
from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.stream import POSITION, TrainingStream, open_streams
from falcon3_audio.training.data.training_sets import describe_sets, load_training_data


ROWS = [7, 5, 6]  # of the files of `texts`


@pytest.fixture
def texts(tmp_path):
    """A folder of three files of chats without audio; each chat contains its number."""
    numbers = iter(range(100))
    for file, count in enumerate(ROWS):
        rows = [{"messages": [user(f"{next(numbers)}"), assistant("yes")]} for _ in range(count)]
        (tmp_path / "texts").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "texts" / f"{file}.jsonl", rows)
    return DataSource(str(tmp_path / "texts"), sound=False, streaming=True)


@pytest.fixture
def clips(tmp_path):
    """Parquet with 0 to 4 questions per clip."""
    rows = [clip_row(path, number % 5) for number, path in enumerate(write_clips(tmp_path / "clips", 9, 0.05))]
    write_shard(tmp_path / "clips.parquet", rows, CLIP_FEATURES)
    return DataSource(str(tmp_path / "clips.parquet"), streaming=True)


def open_stream(*sources, **options):
    return TrainingStream(open_streams(sources)[0], **options)


def first_pass(stream):
    return list(takewhile(lambda example: example[PASS] == 0, stream))


def number_of(example):
    return int(example["messages"][0]["content"][-1]["text"])


@pytest.mark.parametrize("buffer_size", [1, 4, 100])
def test_each_pass_has_every_row_once_in_an_order_of_its_own(texts, buffer_size):
    stream = open_stream(texts, seed=3, buffer_size=buffer_size)
    total = sum(ROWS)
    order = [(example[PASS], number_of(example)) for example in islice(stream, 3 * total)]
    passes = [[number for turn, number in order if turn == which] for which in range(3)]
    assert [sorted(one) for one in passes] == [list(range(total))] * 3
    assert passes[0] != passes[1]
    assert order == [(example[PASS], number_of(example)) for example in islice(stream, 3 * total)]
    other = open_stream(texts, seed=4, buffer_size=buffer_size)
    assert passes[0] != [number_of(example) for example in islice(other, total)]
    if buffer_size == 1:
        assert sum(after == before + 1 for before, after in pairwise(passes[0])) >= total - len(ROWS)
    else:
        assert sum(after == before + 1 for before, after in pairwise(passes[0])) < total / 2


@pytest.mark.parametrize("processes, workers", [(2, 0), (3, 1), (2, 2), (4, 3)])
def test_readers_part_each_pass(texts, processes, workers):
    """Also with more readers than files; together they read every row once."""
    parts = []
    for process in range(processes):
        stream = open_stream(texts, buffer_size=3, process=process, processes=processes, workers=workers)
        parts += [
            [number_of(example) for example in takewhile(lambda example: example[PASS] == 0, stream._read(own, None))]
            for own in range(max(1, workers))
        ]
    assert all(parts) and sorted(sum(parts, [])) == list(range(sum(ROWS)))


def test_sets_come_by_weight(texts, clips):
    texts.weight, clips.weight = 3, 1
    stream = open_stream(texts, clips, questions_per_row=1, buffer_size=2)
    counts = Counter(example["origin"].split(",")[0] for example in islice(stream, 2000))
    assert counts[texts.path] == pytest.approx(1500, abs=70)  # 3.6 standard deviations
    assert counts[texts.path] + counts[clips.path] == 2000


@pytest.mark.parametrize("limit, longest", [(None, 4), (3, 3), (1, 1)])
def test_questions_of_a_clip_stay_together(clips, limit, longest):
    examples = first_pass(open_stream(clips, questions_per_row=limit, buffer_size=5, seed=1))
    loaded, _ = load_training_data([DataSource(clips.path)])
    assert sorted(example["origin"] for example in examples) == sorted(example["origin"] for example in loaded)
    runs = [1]
    for before, after in pairwise(examples):
        runs = [*runs[:-1], runs[-1] + 1] if after["clip"] == before["clip"] else [*runs, 1]
    if limit is None:
        assert sorted(runs) == [1, 1, 2, 2, 3, 3, 4]  # two of nine rows have none
    else:
        assert max(runs) >= longest and len(runs) > 7


@pytest.mark.parametrize("questions_per_row, buffer_size", [(None, 1), (None, 4), (2, 5), (1, 100)])
def test_after_any_question_a_stream_goes_on(texts, clips, questions_per_row, buffer_size):
    """Two sets, several passes over both, and also a stop between the questions of a clip."""
    options = {"questions_per_row": questions_per_row, "buffer_size": buffer_size, "seed": 5}
    whole = list(islice(open_stream(texts, clips, **options), 120))
    assert min(example[PASS] for example in whole[-10:]) > 0
    for stop in range(1, 90, 13):
        stream = open_stream(texts, clips, **options)
        for example in islice(stream, stop):
            stream.passed(example[POSITION])
        state = json.loads(json.dumps(stream.state()))
        again = open_stream(texts, clips, **options)
        again.go_on(state)
        assert [example["origin"] for example in islice(again, 30)] == [
            example["origin"] for example in whole[stop : stop + 30]
        ]


@pytest.mark.parametrize("stop", [3, 4])
def test_a_loader_of_several_workers_goes_on(texts, stop):
    """Its workers have read ahead of the batches it gave out; after an odd number, the second worker is next."""

    def loader(stream):
        collate = _numbers_and_position
        return DataLoader(stream, batch_size=3, num_workers=2, collate_fn=collate, multiprocessing_context="fork")

    stream = open_stream(texts, workers=2, buffer_size=3)
    batches = list(islice(loader(stream), 9))
    seen = sum((numbers for numbers, _ in batches[:3]), [])
    assert len(set(seen)) == len(seen)
    for _, position in batches[:stop]:
        stream.passed(position)
    assert [numbers for numbers, _ in islice(loader(stream), 9 - stop)] == [numbers for numbers, _ in batches[stop:]]


def _numbers_and_position(examples):
    return [number_of(example) for example in examples], examples[-1][POSITION]


def test_going_on_with_other_readers(texts):
    state = open_stream(texts, processes=2, workers=3).state()
    with pytest.raises(
        ValueError, match=r"read by 2 process\(es\) with 3 worker\(s\).*now there are 2 with 1.*dataloader_num_workers"
    ):
        open_stream(texts, processes=2).go_on(state)


def test_a_reader_without_rows(texts, tmp_path):
    path = write_jsonl(tmp_path / "few.jsonl", [{"messages": [user("1"), assistant("yes")]}])
    stream = open_stream(DataSource(str(path), sound=False, streaming=True), process=1, processes=2)
    with pytest.raises(
        ValueError, match=r"few.jsonl has fewer rows than there are readers \(2: .*Lower dataloader_num_workers"
    ):
        next(iter(stream))


def test_a_set_whose_later_rows_have_no_questions(tmp_path, clips):
    """Only the first rows are checked in advance; a reader that finds only rows without questions raises an error."""
    (clip,) = write_clips(tmp_path / "one", 1, 0.05)
    write_shard(tmp_path / "odd.parquet", [clip_row(clip, 1), clip_row(clip, 0)], CLIP_FEATURES)
    stream = open_stream(DataSource(str(tmp_path / "odd.parquet"), streaming=True), process=1, processes=2)
    with pytest.raises(ValueError, match="odd.parquet' holds no questions"):
        next(iter(stream))


def test_rows_are_named(tmp_path, texts):
    """By file and row number; invalid JSON by its line."""
    (tmp_path / "texts" / "1.jsonl").write_text(json.dumps({"messages": [user("1"), assistant("")]}) + "\n")
    with pytest.raises(ValueError, match=r"texts, 1.jsonl, row 0: message 1, an answer, has no text"):
        first_pass(open_stream(texts))
    (tmp_path / "texts" / "1.jsonl").write_text("\n{nonsense\n")
    with pytest.raises(ValueError, match=r"JSON parse error in .*1.jsonl"):
        first_pass(open_stream(texts))
    rows = [{"messages": [user("1"), assistant(answer)]} for answer in ("yes", "yes", "")]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet, row 2: message 1, an answer"):
        first_pass(open_stream(DataSource(str(tmp_path / "rows.parquet"), sound=False, streaming=True)))


def test_sets_that_are_on_the_disk_are_streamed_as_they_are(tmp_path):
    """Prepared shards, and sets saved by `datasets`: with the row numbers, and so the prompts, of the loaded set."""
    wavs = write_clips(tmp_path / "wavs", 3, 0.05)
    with begin_set(tmp_path / "shards", {}) as report:
        for number in range(2):
            write_shard(tmp_path / "shards" / f"{number}.arrow", [clip_row(wav, 2) for wav in wavs], CLIP_FEATURES)
        finish_set(tmp_path / "shards", report, {"0.arrow": 3, "1.arrow": 3})
    rows = [{"audio": str(wav), "text": answer} for wav in wavs * 40 for answer in ANSWERS]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name, entry in (("shards", {}), ("saved", {"prompt": ["What?", "Which?", "Who?"]})):
        loaded, _ = load_training_data([DataSource(str(tmp_path / name), **entry)])
        examples = first_pass(open_stream(DataSource(str(tmp_path / name), streaming=True, **entry), buffer_size=9))
        for example in examples:
            del example[PASS], example[POSITION]
        by_origin = {example["origin"]: example for example in examples}
        assert len(examples) == len(loaded) and [by_origin[example["origin"]] for example in loaded] == list(loaded)


def test_what_the_first_rows_say_of_a_set(texts, clips):
    _, (examples, sizes) = open_streams([texts, clips], rows=4)
    assert sizes == [4, 6]  # the clips have 0, 1, 2 and 3 questions
    assert describe_sets(examples) == [
        f"{texts}: a stream of unknown length; by its first 4 rows, read as chats (messages)",
        f"{clips}: a stream of unknown length; by its first 4 rows, read as questions about clips (audio, questions)",
    ]


def test_columns_that_come_later_and_numbers_without_names(tmp_path):
    """Columns that are not in the first rows are noticed; the name of a label must be in the features."""
    (clip,) = write_clips(tmp_path, 1, 0.05)
    rows = [{"audio": str(clip), "label": 1}, {"audio": str(clip), "label": 2}]
    source = DataSource(str(write_jsonl(tmp_path / "labels.jsonl", rows)), prompt="Which?", streaming=True)
    with pytest.raises(
        ValueError, match="labels.jsonl' has the label 1 in `label`; the set has no names for such numbers"
    ):
        open_stream(source)
    rows = [{"messages": [user("1"), assistant("yes")]}] * 100 + [
        {"messages": [user("1"), assistant("a")], "tools": ["b"]}
    ]
    source = DataSource(str(write_jsonl(tmp_path / "chats.jsonl", rows)), sound=False, streaming=True)
    with pytest.raises(ValueError, match="chats.jsonl, row 100: .*tools"):
        first_pass(open_stream(source))


def test_sets_that_cannot_be_streamed(tmp_path, texts):
    write_jsonl(tmp_path / "none.jsonl", [])
    with pytest.raises(ValueError, match="none.jsonl' is empty"):
        open_stream(DataSource(str(tmp_path / "none.jsonl"), streaming=True))
    for split in ("train[:2]", "test"):
        with pytest.raises(ValueError, match=r"texts' cannot be read: got the split .*; expected one of train"):
            open_stream(DataSource(texts.path, split=split, streaming=True))
    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet' cannot be read: Bad split: train\[:2\]"):
        open_stream(DataSource(str(tmp_path / "rows.parquet"), split="train[:2]", streaming=True))
    with pytest.raises(ValueError, match="nothing.jsonl' cannot be read: there is no such file"):
        open_stream(DataSource(str(tmp_path / "nothing.jsonl"), streaming=True))
    rows = write_jsonl(tmp_path / "silent.jsonl", [{"messages": [user("1"), assistant("yes")]}])
    with pytest.raises(ValueError, match=r"No row of the training set .*silent.jsonl"):
        open_stream(DataSource(str(rows), streaming=True))
    assert number_of(next(iter(open_stream(DataSource(str(rows), sound="some", streaming=True))))) == 1
    with pytest.raises(
        ValueError,
        match=r"texts has `streaming: true`, but only `train_data` of `falcon3-audio train` can be streamed",
    ):
        load_training_data([texts])


def test_a_clip_is_augmented_anew_in_each_pass(tmp_path):
    (clip,) = write_clips(tmp_path, 1)
    rows = write_jsonl(
        tmp_path / "rows.jsonl",
        [{"messages": [user(heard(clip.name), {"type": "text", "text": "1"}), assistant("a")]}],
    )
    augmenter = Augmenter(Augmentation(prob=1, noise_snr_db=[5, 5]), seed=0)
    sounds = [
        torch.tensor(augmenter.of_example(example)["messages"][0]["content"][0]["audio"])
        for stream in [open_stream(DataSource(str(rows), streaming=True))] * 2
        for example in islice(stream, 2)
    ]
    assert torch.equal(sounds[0], sounds[2]) and torch.equal(sounds[1], sounds[3])
    assert not torch.equal(sounds[0], sounds[1])
