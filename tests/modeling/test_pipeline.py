"""The audio-text-to-text pipeline against the processor's chat template and `generate`, called by hand."""

import copy
import dataclasses
import io
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from tiny import make_llm, question, tone
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig, TextStreamer, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.chat_template_utils import Chat

from falcon3_audio import AudioTextToTextPipeline, Falcon3AudioForConditionalGeneration
from falcon3_audio.pipeline_falcon3_audio import Request


CLIPS = {"a": tone(0.5, 300), "b": tone(1.3, 1000), "c": tone(0.9, 2000)}


@pytest.fixture(scope="module")
def folder(sensitive):
    return sensitive


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("audio-text-to-text", model=folder, max_new_tokens=8, do_sample=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> path of each clip, as float samples at 16 kHz."""
    path = tmp_path_factory.mktemp("clips")
    for name, clip in CLIPS.items():
        soundfile.write(path / f"{name}.wav", clip, 16_000, subtype="FLOAT")
    return {name: str(path / f"{name}.wav") for name in CLIPS}


def by_hand(pipe, chat, **options) -> list[str]:
    """The answers to one chat, without the pipeline."""
    ends = chat[-1]["role"] == "assistant"
    inputs = pipe.processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=not ends, continue_final_message=ends
    )
    tokens = pipe.model.generate(**inputs, **({"max_new_tokens": 8, "do_sample": False} | options))
    return pipe.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def about(pipe, names, text="What?", **options) -> str:
    """The answer to one question about some clips."""
    return by_hand(pipe, question(*[CLIPS[name] for name in names], text=text), **options)[0]


def texts(results) -> list[str]:
    """The first answers of several inputs."""
    return [records[0]["generated_text"] for records in results]


@pytest.fixture
def calls(pipe, monkeypatch):
    """The arguments of each `generate` call."""
    seen = []
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **kwargs: seen.append(kwargs) or generate(**kwargs))
    return seen


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


# Parameters.


def test_streaming(pipe, files):
    class Streamer(TextStreamer):
        text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    streamer = Streamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = pipe(files["a"], text="What?", streamer=streamer)[0]["generated_text"]
    assert streamer.text == answer == about(pipe, "a")


def test_the_whole_chat(pipe, files):
    chat = question(CLIPS["a"], text="What?")
    records = pipe([chat], return_full_text=True, num_beams=2, num_return_sequences=2)[0]
    wanted = by_hand(pipe, chat, num_beams=2, num_return_sequences=2)
    for record, answer in zip(records, wanted, strict=True):
        assert record["generated_text"] == [*chat, {"role": "assistant", "content": answer}]
        assert record["input_text"] == chat
    content = pipe(files["a"], text="What?", return_full_text=True)[0]["generated_text"]
    assert content[-1] == {"role": "assistant", "content": about(pipe, "a")}


@pytest.mark.parametrize("as_items", [False, True])
def test_an_answer_that_was_begun_is_continued(pipe, as_items):
    begun = [{"type": "text", "text": "It is "}] if as_items else "It is "
    chat = [*question(CLIPS["a"], text="What?"), {"role": "assistant", "content": begun}]
    wanted = by_hand(pipe, chat)[0]
    assert wanted != about(pipe, "a")
    assert pipe(chat)[0]["generated_text"] == wanted
    last = pipe(chat, return_full_text=True)[0]["generated_text"][-1]
    whole = "It is " + wanted
    assert last == {"role": "assistant", "content": [{"type": "text", "text": whole}] if as_items else whole}
    assert chat[-1]["content"] == begun
    mixed = [chat, question(CLIPS["a"], text="What?")]
    assert texts(pipe(mixed)) == [wanted, about(pipe, "a")]
    with pytest.raises(ValueError, match="batch_size=1"):
        pipe(mixed, batch_size=2)


def test_the_whole_chat_is_what_the_model_was_asked_to_go_on_with(pipe):
    def whole(chat, **options):
        answer = pipe(chat, **options)[0]["generated_text"]
        return answer, pipe(chat, return_full_text=True, **options)[0]["generated_text"]

    asked, begun = question(text="What?"), {"role": "assistant", "content": "It is "}
    answer, chat = whole([*asked, begun], continue_final_message=False)
    assert chat == [*asked, begun, {"role": "assistant", "content": answer}]
    user = {"role": "user", "content": "What is"}
    answer, chat = whole([user], continue_final_message=True)
    assert chat == [{"role": "user", "content": "What is" + answer}]


CALL = [{"type": "function", "function": {"name": "hear", "arguments": {}}}]


@pytest.mark.parametrize("empty", [{"content": ""}, {"content": []}, {"content": None, "tool_calls": CALL}])
def test_an_answer_without_words_is_not_continued(pipe, empty):
    chat = [*question(CLIPS["a"], text="What?"), {"role": "assistant", **empty}]
    for options in ({}, {"continue_final_message": False}):
        answer = pipe(chat, **options)[0]["generated_text"]
        assert pipe(chat, return_full_text=True, **options)[0]["generated_text"] == [
            *chat,
            {"role": "assistant", "content": answer},
        ]


def test_a_model_in_the_place_of_another(pipe, folder, files):
    """The new model's answers do not use what the old model computed."""
    made = pipeline("audio-text-to-text", model=folder, max_new_tokens=8, do_sample=False, prompt_cache_tokens=1000)
    assert made(files["a"], text="What?")[0]["generated_text"] == about(pipe, "a")
    torch.manual_seed(1)
    made.model = AutoModelForMultimodalLM.from_pretrained(folder)
    for weight in made.model.model.audio_tower.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, weight[0].numel() ** -0.5)
    for _ in range(2):
        assert made(files["a"], text="What?")[0]["generated_text"] == about(made, "a") != about(pipe, "a")


def test_length_of_answers(pipe, folder, files, calls):
    assert len(pipe.tokenizer.encode(pipe(files["a"], text="What?", max_new_tokens=3)[0]["generated_text"])) == 3
    pipe(files["a"], text="What?", generate_kwargs={"max_new_tokens": 2})
    assert [call["max_new_tokens"] for call in calls] == [3, 2]
    calls.clear()
    plain = AudioTextToTextPipeline(model=pipe.model, processor=pipe.processor)
    plain(files["a"], text="What?", stop_strings=[about(pipe, "a")[:3]])
    assert calls[-1]["max_new_tokens"] == 256
    plain(files["a"], text="What?", generation_config=GenerationConfig(max_new_tokens=4))
    assert "max_new_tokens" not in calls[-1] and calls[-1]["generation_config"].max_new_tokens == 4
    config = GenerationConfig(stop_strings=[about(pipe, "a")[:3]])
    plain(files["a"], text="What?", generation_config=config)
    assert calls[-1]["generation_config"].max_new_tokens == 256 and config.max_new_tokens is None


def test_a_generation_config_replaces_what_the_pipeline_was_made_with(pipe, files):
    """Keyword arguments take precedence over it, as in transformers' own pipelines."""
    options = {"max_new_tokens": 8, "generation_config": GenerationConfig(do_sample=False)}
    made = pipeline("audio-text-to-text", model=pipe.model, processor=pipe.processor, **options)

    def length(**given):
        return len(pipe.tokenizer.encode(made(files["a"], text="What?", **given)[0]["generated_text"]))

    config = GenerationConfig(max_new_tokens=3)
    assert [length(), length(max_new_tokens=5), length(generation_config=config)] == [8, 5, 3]
    assert length(generation_config=config, max_new_tokens=4) == 4
    with pytest.raises(ValueError, match="`generation_config` must be a GenerationConfig, got a dict"):
        length(generation_config={"max_new_tokens": 3})


def test_an_assistant_model_is_a_model(pipe, folder):
    with pytest.raises(ValueError, match="must be a model, got .*Load it first, with AutoModelForMultimodal"):
        pipeline("audio-text-to-text", model=pipe.model, processor=pipe.processor, assistant_model=folder)


def test_an_assistant_hears_the_clip_too(pipe, files, whisper):
    """A narrower one, which cannot use the audio that the pipeline keeps."""
    llm = make_llm(hidden_size=24, head_dim=6)
    token = pipe.model.config.audio_token_id
    assistant = Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=token).eval()
    for _ in range(2):
        answered = pipe(files["a"], text="What?", assistant_model=assistant)
        assert answered[0]["generated_text"] == about(pipe, "a")


def test_stop_strings(pipe, files):
    answer = about(pipe, "a")
    assert answer.startswith(pipe(files["a"], text="What?", stop_strings=[answer[:3]])[0]["generated_text"])
    assert len(pipe(files["a"], text="What?", stop_strings=[answer[:3]])[0]["generated_text"]) < len(answer)


def test_special_tokens_are_shown_on_request(pipe, files):
    options = {"suppress_tokens": None, "forced_eos_token_id": pipe.tokenizer.eos_token_id, "max_new_tokens": 2}
    assert "<|endoftext|>" not in pipe(files["a"], text="What?", **options)[0]["generated_text"]
    shown = pipe(files["a"], text="What?", skip_special_tokens=False, **options)[0]["generated_text"]
    assert shown.endswith("<|endoftext|>")


def test_processor_kwargs(folder, files):
    processor = AutoProcessor.from_pretrained(folder)
    processor.max_audio_seconds = 1.0
    short = pipeline("audio-text-to-text", model=folder, processor=processor, max_new_tokens=4)
    assert short(files["b"], text="What?") and short(files["a"], text="What?", processor_kwargs={"truncation": False})
    with pytest.raises(ValueError, match=r"1\.3 s long, over the limit of 1 s"):
        short(files["b"], text="What?", processor_kwargs={"truncation": False})


def test_half_precision(folder, files):
    half = pipeline("audio-text-to-text", model=folder, dtype=torch.bfloat16, max_new_tokens=4)
    assert half.model.dtype == torch.bfloat16
    assert half(files["a"], text="What?")[0]["generated_text"]


# Errors.


@pytest.mark.parametrize("arguments", [{}, {"audio": []}, {"text": []}, {"audio": [], "text": "What?"}])
def test_nothing_was_asked(pipe, arguments):
    with pytest.raises(ValueError, match="Got no input"):
        pipe(**arguments)


def test_lists_of_unequal_length(pipe, files):
    with pytest.raises(ValueError, match="Got 2 clips but 1 texts"):
        pipe([files["a"], files["b"]], text=["What?"])


def test_several_questions_about_one_clip(pipe, files):
    """They are asked one by one or refused, but never merged."""
    try:
        results = pipe(files["a"], text=["What?", "Why?"])
    except ValueError:
        return
    assert texts(results) == [about(pipe, "a"), about(pipe, "a", "Why?")]


def test_a_clip_beside_a_chat_is_refused(pipe, files):
    chat = question(text="What?")
    for arguments in ({"audio": files["a"], "text": chat}, {"audio": [files["a"]], "text": [chat]}):
        with pytest.raises(ValueError):
            pipe(**arguments)


def test_unknown_parameters(pipe, folder):
    with pytest.raises(TypeError, match="no parameter max_token,"):
        pipe(text="What?", max_token=5, top_q=1)
    with pytest.raises(TypeError, match="no parameter max_token"):
        pipeline("audio-text-to-text", model=pipe.model, processor=pipe.processor, max_token=5)


def test_bad_inputs_are_named(pipe):
    for arguments, message in (
        ({"audio": "nowhere.wav", "text": "What?"}, "no file 'nowhere.wav'"),
        ({"audio": np.zeros(0), "text": "What?", "sampling_rate": 16_000}, "is empty"),
        ({"audio": CLIPS["a"], "text": "What?", "sampling_rate": 0}, "whole number of Hz"),
        ({"audio": [{"sound": "a.wav"}]}, "'audio' and 'text'"),
        ({"text": "What is " + pipe.processor.audio_token}, "placeholder"),
        ({"text": [*question(text="What?"), {"content": "a dog"}]}, "Message 1 needs a 'role'"),
        ({"audio": [[CLIPS["a"]], []], "text": "What?", "sampling_rate": 16_000}, "empty list of clips.*None"),
        ({"audio": {"audio": [], "text": "What?"}}, "empty list of clips.*None"),
        ({"audio": (CLIPS["a"], 44_100.5), "text": "What?"}, "whole number of Hz.*got 44100.5"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)


def test_a_row_whose_clip_or_question_is_under_another_name_is_refused(pipe, files):
    """Otherwise the model would be asked without the clip, or without the question."""
    clip = {"array": CLIPS["a"], "sampling_rate": 16_000}
    for row in (
        clip | {"text": "What?"},
        {"path": files["a"], "text": "What?"},
        {"audio_path": files["a"], "text": "What?"},
        {"audios": [files["a"]], "text": "What?"},
        {"audio": files["a"], "question": "What?"},
    ):
        for arguments in (row, [row], (one for one in [row])):
            with pytest.raises(ValueError, match="'audio' and 'text'.*Rename"):
                list(pipe(arguments))
    row = {"id": 7, "audio": files["a"], "text": "What?", "answer": "a dog"}
    assert texts(pipe([row])) == [about(pipe, "a")]


def test_none_is_no_clip_and_no_question(pipe, files):
    for arguments, message in (
        ({"audio": [files["a"], None], "text": "What?"}, "clips is None"),
        ({"audio": [files["a"]], "text": [None]}, "texts is None"),
        ({"audio": [{"audio": files["a"], "text": "What?"}, None]}, "is None"),
        ({"audio": {"audio": None, "text": None}}, "is None"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)
    assert pipe({"audio": None, "text": "What?"})[0]["generated_text"] == by_hand(pipe, question(text="What?"))[0]


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_size_that_is_no_size(pipe, files, size):
    clips = [files["a"], files["b"]]
    for inputs in (clips, iter(clips)):
        with pytest.raises(ValueError, match=f"batch_size.*got {size}"):
            list(pipe(inputs, text="What?", batch_size=size))


def test_arguments_that_contradict_what_the_pipeline_does(pipe, files):
    with pytest.raises(ValueError, match="twice.*max_new_tokens"):
        pipe(files["a"], text="What?", max_new_tokens=4, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="padded on the left"):
        pipe([files["a"], files["b"]], text="What?", batch_size=2, processor_kwargs={"padding_side": "right"})


def test_a_model_without_ears(pipe):
    with pytest.raises(ValueError, match="LlamaForCausalLM takes text.*needs a model that takes audio"):
        AudioTextToTextPipeline(model=make_llm(), processor=pipe.processor)


# Loading and saving.


def test_saving_and_loading(pipe, files, tmp_path):
    """The saved config names the pipeline's own code; with the package imported, no `trust_remote_code` is needed."""
    pipe.save_pretrained(tmp_path)
    custom = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]["audio-text-to-text"]
    assert (tmp_path / (custom["impl"].split(".")[0] + ".py")).exists()
    loaded = pipeline("audio-text-to-text", model=str(tmp_path), max_new_tokens=8)
    assert type(loaded) is AudioTextToTextPipeline
    assert loaded(files["a"], text="What?", do_sample=False)[0]["generated_text"] == about(pipe, "a")


def test_saving_what_was_loaded_with_options(folder, tmp_path):
    made = pipeline("audio-text-to-text", model=folder, dtype=torch.bfloat16)
    made.save_pretrained(tmp_path)
    assert AutoModelForMultimodalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_from_objects(folder, pipe, files):
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    made = pipeline("audio-text-to-text", model=model, processor=processor, batch_size=2)
    results = made([files["a"], files["b"]], text="What?", max_new_tokens=8)
    assert texts(results) == [about(pipe, "a"), about(pipe, "b")]


def test_the_any_to_any_pipeline(folder, pipe):
    general = pipeline("any-to-any", model=folder)
    chats = [question(CLIPS[name], text="What?") for name in "ab"]
    options = {"max_new_tokens": 8, "return_full_text": False}
    assert general(text=chats[0], **options)[0]["generated_text"] == about(pipe, "a")
    assert texts(general(text=chats, **options)) == [about(pipe, "a"), about(pipe, "b")]


def test_batches_of_the_any_to_any_pipeline(folder):
    """Clips of different lengths, two clips, none, an answer to continue: batches answer as single chats do."""
    general = pipeline("any-to-any", model=folder, max_new_tokens=8)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A"}]}  # as items: 5.23 continues only these
    begun = [*question(CLIPS["b"], text="What?"), answer]
    about_two, about_none = question(CLIPS["a"], CLIPS["c"], text="Which?"), question(text="What?")
    chats = [question(CLIPS["a"], text="What is it?"), about_two, about_none, begun, question(CLIPS["b"], text="Why?")]
    single = general(text=chats, return_full_text=False)
    for size in (2, 5, 8):
        assert general(text=chats, batch_size=size, return_full_text=False) == single
    assert general(text=[about_none, about_none], batch_size=2, return_full_text=False) == [single[2]] * 2
    assert general(text=chats, batch_size=3) == general(text=chats)
    assert pipeline("any-to-any", model=folder, batch_size=2, max_new_tokens=8)(text=chats) == general(text=chats)
    token = general.processor.audio_token
    rows = [{"text": token + name, "audio": CLIPS[name]} for name in "abc"]
    rows.append({"text": [f"{token}d", f"{token}e"], "audio": [CLIPS["a"], CLIPS["c"]]})
    generated = [list(general((row for row in rows), batch_size=size)) for size in (1, 2)]
    assert generated[0] == generated[1] == general(rows, batch_size=4)


def test_several_answers_in_batches_of_the_any_to_any_pipeline(folder):
    general = pipeline("any-to-any", model=folder, max_new_tokens=8)
    chats = [question(CLIPS[name], text="What?") for name in "abc"]
    options = {
        "generate_kwargs": {"num_return_sequences": 2, "num_beams": 2, "do_sample": False},
        "return_full_text": False,
    }
    assert general(text=chats, batch_size=2, **options) == general(text=chats, **options)


@pytest.mark.parametrize("size", [0, -1, 2.0])
def test_a_batch_size_that_is_none(folder, size):
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        list(pipeline("any-to-any", model=folder)(text=[question(CLIPS["a"], text="What?")], batch_size=size))


def test_a_column_of_a_dataset(pipe, files):
    """transformers' KeyDataset, which has a length and an index but is not iterable."""
    rows = Dataset.from_list([{"clip": files["a"]}, {"clip": files["b"]}])
    wanted = [about(pipe, "a"), about(pipe, "b")]
    assert texts(pipe(KeyDataset(rows, "clip"), text="What?")) == wanted
    assert texts(pipe(KeyDataset(rows, "clip"), batch_size=2)) == texts(pipe([files["a"], files["b"]]))


# Other kinds of rows.


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


# Arguments for the chat template.


def test_arguments_of_the_chat_template(folder, files):
    processor = AutoProcessor.from_pretrained(folder)
    template = "{{ tools | default('') }} {{ enable_thinking | default('') }} {{ word | default('') }}"
    processor.chat_template = processor.chat_template.rstrip() + template
    pipe = pipeline("audio-text-to-text", model=folder, processor=processor, max_new_tokens=2, enable_thinking=False)
    seen = []
    generate = pipe.model.generate
    pipe.model.generate = lambda **kwargs: seen.append(kwargs["input_ids"][0].tolist()) or generate(**kwargs)
    tool = {"type": "function", "function": {"name": "play", "parameters": {}}}
    pipe(files["a"], text="What?", tools=[tool], chat_template_kwargs={"word": "here"})
    pipe(files["a"], text="What?", enable_thinking=True)
    prompts = [processor.tokenizer.decode(ids) for ids in seen]
    assert "'play'" in prompts[0] and prompts[0].endswith(" False here")
    assert "'play'" not in prompts[1] and prompts[1].endswith(" True ")


def test_an_answer_that_was_begun_may_be_left_as_it_is(pipe):
    chat = [*question(CLIPS["a"], text="What?"), {"role": "assistant", "content": "It is "}]
    inputs = pipe.processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    tokens = pipe.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    wanted = pipe.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert wanted != by_hand(pipe, chat)[0]
    assert pipe(chat, continue_final_message=False)[0]["generated_text"] == wanted
    assert pipe(chat, continue_final_message=True)[0]["generated_text"] == by_hand(pipe, chat)[0]
    mixed = pipe([chat, question(CLIPS["b"], text="What?")], continue_final_message=False, batch_size=2)
    assert texts(mixed) == [wanted, about(pipe, "b")]
