"""The audio-text-to-text pipeline against the processor's chat template and `generate`, called by hand."""

import copy
import dataclasses
import io
import json
from functools import partial
from types import SimpleNamespace

import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from pipeline_calls import CLIPS, about, by_hand, texts
from tiny import question, tone
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.chat_template_utils import Chat

from falcon3_audio import AudioTextToTextPipeline
from falcon3_audio.pipeline_falcon3_audio import Request


def test_answers_of_this_model_tell_inputs_apart(pipe):
    """Otherwise the tests below could not fail."""
    asked = [
        ("a", "What?"),
        ("b", "What?"),
        ("c", "What?"),
        ("a", "Why?"),
        ("ab", "What?"),
        ("ba", "What?"),
        ("", "What?"),
    ]
    answers = [about(pipe, names, text) for names, text in asked]
    assert len(set(answers)) == len(asked) and all(answer.isalpha() for answer in answers)


# One input.


def test_a_file_and_a_question(pipe, files):
    records = pipe(files["a"], text="What?")
    assert records == [
        {
            "input_text": [
                {
                    "role": "user",
                    "content": [{"type": "audio", "audio": files["a"]}, {"type": "text", "text": "What?"}],
                }
            ],
            "generated_text": about(pipe, "a"),
        }
    ]


@pytest.mark.parametrize("kind", ["array", "tensor", "dict", "bytes", "file object"])
def test_other_kinds_of_clips(pipe, files, kind):
    with open(files["a"], "rb") as file:
        data = file.read()
    clip, rate = {
        "array": (CLIPS["a"], 16_000),
        "tensor": (torch.from_numpy(CLIPS["a"]), 16_000),
        "dict": ({"array": CLIPS["a"], "sampling_rate": 16_000}, None),
        "bytes": (data, None),
        "file object": (io.BytesIO(data), None),
    }[kind]
    assert pipe(clip, text="What?", sampling_rate=rate)[0]["generated_text"] == about(pipe, "a")


@pytest.mark.parametrize("kind", ["array", "tensor", "dict", "bytes", "file object", "path"])
def test_a_clip_alone_is_the_question(pipe, files, kind):
    with open(files["a"], "rb") as file:
        data = file.read()
    clip, rate = {
        "array": (CLIPS["a"], 16_000),
        "tensor": (torch.from_numpy(CLIPS["a"]), 16_000),
        "dict": ({"array": CLIPS["a"], "sampling_rate": 16_000}, None),
        "bytes": (data, None),
        "file object": (io.BytesIO(data), None),
        "path": (files["a"], None),
    }[kind]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": CLIPS["a"], "sampling_rate": 16_000}]}]
    assert pipe(clip, sampling_rate=rate)[0]["generated_text"] == by_hand(pipe, chat)[0]


def test_the_sampling_rate_of_arrays(pipe, tmp_path):
    clip = tone(0.5, 700, 44_100)
    soundfile.write(tmp_path / "clip.wav", clip, 44_100, subtype="FLOAT")
    wanted = pipe(str(tmp_path / "clip.wav"), text="What?")[0]["generated_text"]
    assert wanted != pipe(clip, text="What?", sampling_rate=16_000)[0]["generated_text"]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": "What?"}]}]
    unset = copy.deepcopy(chat)
    unset[0]["content"][0]["sampling_rate"] = None
    row = {"audio": clip, "text": "What?"}
    for result in (
        pipe(clip, text="What?", sampling_rate=44_100),
        pipe({"array": clip, "sampling_rate": 44_100}, text="What?"),
        pipe([clip], text="What?", sampling_rate=44_100)[0],
        pipe(row | {"sampling_rate": 44_100}),
        pipe([row], sampling_rate=44_100)[0],
        pipe([row | {"sampling_rate": None}], sampling_rate=44_100)[0],
        pipe(chat, sampling_rate=44_100),
        pipe(unset, sampling_rate=44_100),
        pipe(text=[chat], sampling_rate=44_100)[0],
    ):
        assert result[0]["generated_text"] == wanted


def test_chats(pipe):
    chat = [
        {"role": "system", "content": "Be brief."},
        *question(CLIPS["a"]),
        {"role": "assistant", "content": "a dog"},
        *question(CLIPS["b"], text="And now?"),
    ]
    before = copy.deepcopy(chat)
    wanted = by_hand(pipe, chat)[0]
    for records in (pipe(chat), pipe(text=chat), pipe(tuple(chat))):
        assert records[0]["generated_text"] == wanted
    assert texts(pipe([chat, question(CLIPS["c"], text="What?")])) == [wanted, about(pipe, "c")]
    assert texts(pipe(text=[chat, chat], batch_size=2)) == [wanted, wanted]
    assert str(chat) == str(before)


def test_chats_of_objects(pipe):
    """As transformers' own pipelines wrap them, and as API clients return them."""

    @dataclasses.dataclass
    class Message:
        role: str
        content: list
        tool_calls: list | None = None

    chat = question(CLIPS["a"], text="What?")
    objects = [Message(**message) for message in chat]
    wanted = about(pipe, "a")
    for given in (Chat(chat), objects, tuple(objects), SimpleNamespace(messages=objects)):
        assert pipe(given)[0]["generated_text"] == wanted
        assert pipe(given)[0]["input_text"] == chat
    assert texts(pipe([Chat(chat), objects], batch_size=2)) == [wanted, wanted]
    with pytest.raises(ValueError, match="Message 0 must be a dict, a dataclass or a pydantic model"):
        pipe([SimpleNamespace(role="user", content="What?")])  # an object of neither kind


def test_a_processor_without_plain_messages_gets_the_list_that_an_object_holds(pipe, monkeypatch):
    monkeypatch.delattr(type(pipe.processor), "plain_messages")
    chat = question(CLIPS["a"], text="What?")
    for given in (SimpleNamespace(messages=chat), Chat(chat), tuple(chat)):
        assert pipe(given)[0]["generated_text"] == about(pipe, "a")
        assert pipe(given)[0]["input_text"] == chat


def test_a_message_without_content_has_no_sampling_rate():
    """A tool call, with a processor that does not resample."""
    whisper = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=16_000))
    call = {"role": "assistant", "content": None, "tool_calls": []}
    check = partial(AudioTextToTextPipeline._check_sampling_rates, SimpleNamespace(processor=whisper))
    check([Request([call, *question(CLIPS["a"], text="What?")])])
    heard = {"type": "audio", "audio": CLIPS["a"], "sampling_rate": 8_000}
    with pytest.raises(ValueError, match="expects audio at 16000 Hz"):
        check([Request([call, {"role": "user", "content": [heard]}])])


def test_words_only(pipe):
    assert pipe(text="What?")[0]["generated_text"] == about(pipe, "")
    assert texts(pipe(text=["What?", "Why?"], batch_size=2)) == [about(pipe, ""), about(pipe, "", "Why?")]


# Several inputs.


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_one_question_about_many_clips(pipe, files, batch_size):
    results = pipe([files["a"], files["b"], files["c"]], text="What?", batch_size=batch_size)
    assert texts(results) == [about(pipe, name) for name in "abc"]


def test_one_question_about_the_clips_of_a_generator_or_a_column(pipe, files):
    paths = [files["a"], files["b"], files["c"]]
    column = Dataset.from_dict({"audio": paths})["audio"]
    wanted = [about(pipe, name) for name in "abc"]
    assert texts(pipe((path for path in paths), text="What?")) == wanted
    assert texts(pipe(column, text="What?", batch_size=2)) == wanted


def test_a_question_for_each_clip(pipe, files):
    results = pipe((files["b"], files["a"]), text=["Why?", "What?"], batch_size=2)
    assert texts(results) == [about(pipe, "b", "Why?"), about(pipe, "a")]


def test_several_clips_in_one_prompt(pipe, files):
    results = pipe([[files["a"], files["b"]], [files["b"], files["a"]], [files["c"]]], text="What?", batch_size=2)
    assert texts(results) == [about(pipe, "ab"), about(pipe, "ba"), about(pipe, "c")]


def test_clips_without_questions(pipe, files):
    """Spoken instructions: paths are never mistaken for text."""
    wanted = []
    for name in "ab":
        audio = {"type": "audio", "audio": CLIPS[name], "sampling_rate": 16_000}
        wanted += by_hand(pipe, [{"role": "user", "content": [audio]}])
    paths = [files["a"], files["b"]]
    assert texts(pipe(paths)) == wanted
    assert texts(pipe(audio=paths, batch_size=2)) == wanted
    assert texts(pipe(path for path in paths)) == wanted
    assert texts(pipe([CLIPS["a"], CLIPS["b"]], sampling_rate=16_000)) == wanted


def test_dicts_and_datasets(pipe, files):
    rows = [{"audio": files["a"], "text": "What?"}, {"audio": files["b"], "text": "Why?"}, {"text": "What?"}]
    rows.append({"audio": [files["a"], files["b"]], "text": "What?"})
    wanted = [about(pipe, "a"), about(pipe, "b", "Why?"), about(pipe, ""), about(pipe, "ab")]
    assert pipe(rows[0])[0]["generated_text"] == wanted[0]
    assert texts(pipe(rows)) == texts(pipe(rows, batch_size=3)) == wanted
    samples = {"array": CLIPS["a"], "sampling_rate": 16_000, "path": None}
    assert pipe({"audio": samples, "text": "What?", "label": 3})[0]["generated_text"] == wanted[0]
    # Common Voice and others have a separate column for the path.
    assert pipe({"path": files["c"], "audio": files["a"], "text": "What?"})[0]["generated_text"] == wanted[0]
    assert texts(pipe(Dataset.from_list(rows[:2]))) == wanted[:2]
    assert texts(pipe(Dataset.from_list(rows[:2]), batch_size=2)) == wanted[:2]


def test_a_generator_is_read_as_answers_are_asked_for(pipe, files):
    read = []

    def rows():
        for name in "abcabcabc":
            read.append(name)
            yield {"audio": files[name], "text": "What?"}

    results = pipe(rows(), batch_size=2)
    assert next(results)[0]["generated_text"] == about(pipe, "a")
    assert len(read) <= 3
    assert texts(results) == [about(pipe, name) for name in "bcabcabc"]


def test_a_row_that_ends_early_leaves_no_padding(pipe, files):
    end = pipe.tokenizer.encode(about(pipe, "a"), add_special_tokens=False)[1]
    wanted = [about(pipe, name, eos_token_id=end) for name in "ab"]
    assert len(wanted[0]) < len(about(pipe, "a"))
    results = pipe([files["a"], files["b"]], text="What?", batch_size=2, eos_token_id=end)
    assert texts(results) == wanted


def test_several_sequences_for_each_input(pipe, files):
    options = {"num_beams": 3, "num_return_sequences": 2}
    results = pipe([files["a"], files["b"]], text="What?", batch_size=2, **options)
    wanted = [by_hand(pipe, question(CLIPS[name], text="What?"), **options) for name in "ab"]
    assert [[record["generated_text"] for record in records] for records in results] == wanted
    assert len(set(wanted[0] + wanted[1])) == 4
    assert results[1][1]["input_text"][0]["content"][0]["audio"] == files["b"]


# Loading and saving.


def test_saving_and_loading(pipe, files, tmp_path):
    """The saved config names the pipeline's own code; with the package imported, no `trust_remote_code` is needed."""
    pipe.save_pretrained(tmp_path)
    custom = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]["audio-text-to-text"]
    assert (tmp_path / (custom["impl"].split(".")[0] + ".py")).exists()
    loaded = pipeline("audio-text-to-text", model=str(tmp_path), max_new_tokens=8)
    assert type(loaded) is AudioTextToTextPipeline
    assert loaded(files["a"], text="What?", do_sample=False)[0]["generated_text"] == about(pipe, "a")


def test_saving_what_was_loaded_with_options(sensitive, tmp_path):
    made = pipeline("audio-text-to-text", model=sensitive, dtype=torch.bfloat16)
    made.save_pretrained(tmp_path)
    assert AutoModelForMultimodalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_from_objects(sensitive, pipe, files):
    model, processor = AutoModelForMultimodalLM.from_pretrained(sensitive), AutoProcessor.from_pretrained(sensitive)
    made = pipeline("audio-text-to-text", model=model, processor=processor, batch_size=2)
    results = made([files["a"], files["b"]], text="What?", max_new_tokens=8)
    assert texts(results) == [about(pipe, "a"), about(pipe, "b")]


def test_a_column_of_a_dataset(pipe, files):
    """transformers' KeyDataset, which has a length and an index but is not iterable."""
    rows = Dataset.from_list([{"clip": files["a"]}, {"clip": files["b"]}])
    wanted = [about(pipe, "a"), about(pipe, "b")]
    assert texts(pipe(KeyDataset(rows, "clip"), text="What?")) == wanted
    assert texts(pipe(KeyDataset(rows, "clip"), batch_size=2)) == texts(pipe([files["a"], files["b"]]))


# Other kinds of rows.


def test_rows_of_a_dataset_with_one_question(pipe, files):
    paths = Dataset.from_dict({"audio": [files["a"], files["b"]], "label": [1, 2]})
    encoded = paths.cast_column("audio", Audio(decode=False))
    samples = [{"array": CLIPS[name], "sampling_rate": 16_000, "path": None} for name in "ab"]
    decoded = [{"audio": clip, "path": files["c"], "text": None} for clip in samples]
    wanted = [about(pipe, "a"), about(pipe, "b")]
    for rows in (
        paths,
        encoded,
        encoded.remove_columns("label"),
        list(encoded),
        encoded.to_iterable_dataset(),
        decoded,
    ):
        assert texts(pipe(rows, text="What?", batch_size=2)) == wanted
        assert pipe(next(iter(rows)), text="What?")[0]["generated_text"] == wanted[0]
    assert texts(pipe(encoded, text=["What?", "Why?"])) == [wanted[0], about(pipe, "b", "Why?")]
    with pytest.raises(ValueError, match="Input 0: Got `text` for a row with its own 'text', 'Why[?]'"):
        list(pipe(paths.add_column("text", ["Why?", None]), text="What?"))
    with pytest.raises(ValueError, match="One of the clips is None"):
        pipe({"audio": None, "label": 1}, text="What?")


def test_streams_of_datasets(pipe, files):
    rows = Dataset.from_list([{"audio": files[name], "text": "What?"} for name in "abc"]).to_iterable_dataset()
    wanted = [about(pipe, name) for name in "abc"]
    assert texts(pipe(rows)) == wanted
    assert texts(pipe(rows, batch_size=2)) == wanted
    assert texts(pipe((row["audio"] for row in rows), text="What?", batch_size=2)) == wanted


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_datasets_in_another_format(pipe, format):
    samples = [{"array": CLIPS[name], "sampling_rate": 16_000} for name in "ab"]
    rows = Dataset.from_dict({"audio": samples, "text": ["What?", "Why?"]}).with_format(format)
    wanted = [about(pipe, "a"), about(pipe, "b", "Why?")]
    assert texts(pipe(rows)) == wanted
    assert texts(pipe(rows.to_iterable_dataset(), batch_size=2)) == wanted


def test_clips_beside_a_question_are_read_as_answers_are_asked_for(pipe, files):
    read = []

    def clips():
        for name in "abcabcabc":
            read.append(name)
            yield files[name]

    def whys():
        while True:
            yield "Why?"

    results = pipe(clips(), text="What?")
    assert next(results)[0]["generated_text"] == about(pipe, "a")
    assert len(read) <= 2
    assert next(pipe(files["a"], text=whys()))[0]["generated_text"] == about(pipe, "a", "Why?")
    assert texts(pipe((files[name] for name in "ab"), text=["What?", "Why?"])) == [
        about(pipe, "a"),
        about(pipe, "b", "Why?"),
    ]
    for texts_given, message in (
        (["What?"], "Got only 1 texts but more clips"),
        (["What?"] * 3, "more texts than clips"),
    ):
        with pytest.raises(ValueError, match=message):
            list(pipe((files[name] for name in "ab"), text=texts_given))
    with pytest.raises(ValueError, match="A chat contains its own audio"):
        list(pipe((files[name] for name in "ab"), text=[question(text="What?")] * 2))


def test_one_file_object_for_several_questions(pipe, files):
    with open(files["a"], "rb") as file:
        assert texts(pipe(file, text=["What?", "Why?"])) == [about(pipe, "a"), about(pipe, "a", "Why?")]
        assert pipe(file, text="What?")[0]["generated_text"] == about(pipe, "a")


def test_items_without_a_type(pipe, files):
    for source in ({"audio": CLIPS["a"]}, {"path": files["a"]}, {"url": files["a"], "audio": None}):
        chat = [{"role": "user", "content": [source, {"text": "What?"}]}]
        assert pipe(chat, sampling_rate=16_000)[0]["generated_text"] == about(pipe, "a")
