"""Sets from any location, and exactly the requested split."""

from itertools import chain

import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_dataset_builder
from training_runs import write_jsonl

from falcon3_audio.training.data.open_dataset import open_dataset
from falcon3_audio.training.data.open_stream import open_shards
from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard


@pytest.fixture
def folder(tmp_path):
    """Files as in a copy of a Hub set, among audio files whose names do not matter."""
    folder = tmp_path / "testing ground" / "set"
    (folder / "data").mkdir(parents=True)
    for name in ("train-00000", "train-00001", "test-00000", "my_dev", "contest"):
        write_jsonl(folder / "data" / f"{name}.jsonl", [{"text": name}, {"text": name}])
    for sound in ("train_0.wav", "test.wav"):
        (folder / sound).write_bytes(b"")
    return folder


def texts(*arguments):
    return [row["text"] for row in open_dataset(*map(str, arguments))]


def test_files_that_are_named_after_a_split_are_in_no_other(folder):
    """Other files are training data: `contest` is not a test set, and neither is the folder `testing ground`."""
    assert texts(folder) == 2 * ["contest"] + 2 * ["train-00000"] + 2 * ["train-00001"]
    assert [row["text"] for row in open_dataset(str(folder), split="test")] == 2 * ["test-00000"]
    assert [row["text"] for row in open_dataset(str(folder), split="validation[:1]")] == ["my_dev"]
    with pytest.raises(ValueError, match="set' cannot be read: .*dev"):
        open_dataset(str(folder), split="dev")
    # A file given by path is read, whatever its name.
    assert texts(folder / "data" / "test-00000.jsonl") == 2 * ["test-00000"]


def test_saved_sets_have_the_splits_they_were_saved_with(tmp_path):
    rows = Dataset.from_list([{"text": "a"}])
    DatasetDict(train=rows, test=Dataset.from_list([{"text": "b"}])).save_to_disk(tmp_path / "splits")
    assert [row["text"] for row in open_dataset(str(tmp_path / "splits"), split="test")] == ["b"]
    with pytest.raises(ValueError, match="got the split 'dev'; expected one of train, test"):
        open_dataset(str(tmp_path / "splits"), split="dev")
    Dataset.from_list([{"text": "b"}], split="test").save_to_disk(tmp_path / "one")
    for split in ("test", "train"):  # there is only one
        assert [row["text"] for row in open_dataset(str(tmp_path / "one"), split=split)] == ["b"]
    with pytest.raises(ValueError, match="got the split 'dev'; expected one of test, train"):
        open_dataset(str(tmp_path / "one"), split="dev")


def test_what_has_no_splits_or_configurations_says_so(tmp_path):
    shards = tmp_path / "shards"
    with begin_set(shards, {}) as report:
        write_shard(shards / "0.arrow", [{"text": "a"}], Features({"text": Value("string")}))
        finish_set(shards, report, {"0.arrow": 1})
    assert texts(shards) == ["a"]
    with pytest.raises(ValueError, match="shards' cannot be read: got the split 'test'; expected one of train"):
        open_dataset(str(shards), split="test")
    with pytest.raises(ValueError, match="got the configuration 'main', which only sets on the Hub have"):
        open_dataset(str(shards), "main")
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="rows.jsonl' cannot be read: .*test"):
        open_dataset(str(file), split="test")


def test_what_is_no_set(tmp_path):
    (tmp_path / "rows.xlsx").write_text("text\n")
    with pytest.raises(ValueError, match=r"rows.xlsx' cannot be read: expected files of one kind that end in \.jsonl"):
        open_dataset(str(tmp_path / "rows.xlsx"))
    Dataset.from_list([{"text": "a"}]).select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved' is empty"):
        open_dataset(str(tmp_path / "saved"))


@pytest.mark.parametrize("path", ["mine/nothing.jsonl", "nothing.json", "/nowhere/at all", "a/b/c", "./nothing"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path, monkeypatch):
    monkeypatch.setattr(
        "falcon3_audio.training.data.open_dataset.load_dataset", lambda *args, **kwargs: pytest.fail("asked")
    )
    with pytest.raises(ValueError, match=f"The set '{path}' cannot be read: there is no such file"):
        open_dataset(path)


def test_json_on_the_hub_says_what_it_says(folder, monkeypatch):
    """`datasets` finds the files; their contents are read here."""
    rows = [{"text": text, "same": ["a"] if text == "b" else text} for text in ("0", "null", "2024-01-31", "b")]
    file = str(write_jsonl(folder / "rows.jsonl", rows))

    def found(path, name):
        assert (path, name) == ("owner/texts", "main")
        return load_dataset_builder("json", data_files={"test": [file]})

    monkeypatch.setattr("falcon3_audio.training.data.open_dataset.load_dataset_builder", found)
    assert list(open_dataset("owner/texts", "main", "test")) == rows
    assert open_dataset("owner/texts", "main", "test[1:2]")[0] == rows[1]


def test_tables_and_tars_beside_a_set_are_no_part_of_it(tmp_path):
    """Sets on the Hub come with a tar of the recordings, and with statistics."""
    (tmp_path / "counts.csv").write_text("text,count\na,1\n")
    (tmp_path / "sounds.tar").write_bytes(b"no tar")
    assert texts(tmp_path) == ["a"]
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "b"}])
    assert texts(tmp_path) == ["b"]
    (tmp_path / "rows.tsv").write_text("text\tcount\nc\t1\n")
    assert texts(tmp_path) == ["b"] and texts(tmp_path / "rows.tsv") == ["c"]
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match="expected files of one kind"):
        open_dataset(str(tmp_path))


def test_tables_on_the_hub_say_what_they_say(tmp_path, monkeypatch):
    """`datasets` finds the files and knows the delimiter; pandas would read the texts as numbers and NaN."""
    (tmp_path / "rows.tsv").write_text("text;n\n007;1\nNA;2\n")
    files = {"test": [str(tmp_path / "rows.tsv")]}
    monkeypatch.setattr(
        "falcon3_audio.training.data.open_dataset.load_dataset_builder",
        lambda path, name: load_dataset_builder("csv", data_files=files, sep=";"),
    )
    assert list(open_dataset("owner/texts", None, "test")) == [{"text": "007", "n": "1"}, {"text": "NA", "n": "2"}]


def streamed(path):
    return [row["text"] for row in chain.from_iterable(shard.rows() for shard in open_shards(str(path)))]


def write_parquet(path, rows):
    Dataset.from_list(rows).to_parquet(path)


@pytest.mark.parametrize("name", ["set[12]", "set [v2]", "set*", "set?", "set#1", "set%201", "{set}"])
@pytest.mark.parametrize("ending, write", [(".jsonl", write_jsonl), (".parquet", write_parquet)])
def test_a_name_is_no_pattern(tmp_path, name, ending, write):
    """Neither a file's nor a folder's name, next to others that would match it."""
    for other in ("set1", "set v", "sets", name):
        (tmp_path / other).mkdir()
        for path in (tmp_path / f"{other}{ending}", tmp_path / other / f"rows{ending}"):
            write(path, [{"text": f"{other} {path.parent.name}"}])
    for path, folder in ((tmp_path / f"{name}{ending}", tmp_path.name), (tmp_path / name, name)):
        assert texts(path) == streamed(path) == [f"{name} {folder}"]


def test_a_name_that_datasets_cannot_open(tmp_path):
    with pytest.raises(ValueError, match="a::b.jsonl has `::` in its name, .*; rename it"):
        open_dataset(str(write_jsonl(tmp_path / "a::b.jsonl", [{"text": "a"}])))


def test_hidden_files_are_no_part_of_a_folder(tmp_path):
    """The folder itself can be hidden, or be in a hidden folder."""
    folder = tmp_path / ".cache" / "set"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", [{"text": "a"}])
    write_jsonl(folder / ".ipynb_checkpoints" / "train-checkpoint.jsonl", [{"text": "old"}])
    (folder / "._train.jsonl").write_bytes(b"\0\5\x16\7")
    (folder / "folder.parquet").mkdir()
    assert texts(folder) == streamed(folder) == ["a"]


def test_endings_in_capitals_are_endings(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "b.JSONL", [{"text": "b"}])
    assert texts(tmp_path) == streamed(tmp_path) == ["a", "b"] and texts(tmp_path / "b.JSONL") == ["b"]


def test_other_json_beside_a_set(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    for name in ("dataset_info.json", "config.json"):  # as trainers and `datasets` leave them
        write_jsonl(tmp_path / name, [{"my_set": {"file_name": "train.jsonl"}}])
    assert texts(tmp_path) == streamed(tmp_path) == ["a"]
    write_jsonl(tmp_path / "more.jsonl", [{"text": "b", "id": 1}])
    assert texts(tmp_path) == ["b", "a"]
    write_jsonl(tmp_path / "notes.json", [{"todo": "c", "by": "d"}])
    with pytest.raises(
        ValueError,
        match="notes.json has the columns todo, by, and .*more.jsonl has text, id: these are not one set. Take",
    ):
        open_dataset(str(tmp_path))
