"""The pipeline's options, and what it refuses."""

import numpy as np
import pytest
import torch
from pipeline_calls import CLIPS, about, by_hand, texts
from tiny import make_llm, question
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig, TextStreamer, pipeline

from falcon3_audio import AudioTextToTextPipeline, Falcon3AudioForConditionalGeneration


@pytest.fixture
def calls(pipe, monkeypatch):
    """The arguments of each `generate` call."""
    seen = []
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **kwargs: seen.append(kwargs) or generate(**kwargs))
    return seen


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


def test_a_model_in_the_place_of_another(pipe, sensitive, files):
    """The new model's answers do not use what the old model computed."""
    made = pipeline("audio-text-to-text", model=sensitive, max_new_tokens=8, do_sample=False, prompt_cache_tokens=1000)
    assert made(files["a"], text="What?")[0]["generated_text"] == about(pipe, "a")
    torch.manual_seed(1)
    made.model = AutoModelForMultimodalLM.from_pretrained(sensitive)
    for weight in made.model.model.audio_tower.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, weight[0].numel() ** -0.5)
    for _ in range(2):
        assert made(files["a"], text="What?")[0]["generated_text"] == about(made, "a") != about(pipe, "a")


def test_length_of_answers(pipe, sensitive, files, calls):
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


def test_an_assistant_model_is_a_model(pipe, sensitive):
    with pytest.raises(ValueError, match="must be a model, got .*Load it first, with AutoModelForMultimodal"):
        pipeline("audio-text-to-text", model=pipe.model, processor=pipe.processor, assistant_model=sensitive)


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


def test_processor_kwargs(sensitive, files):
    processor = AutoProcessor.from_pretrained(sensitive)
    processor.max_audio_seconds = 1.0
    short = pipeline("audio-text-to-text", model=sensitive, processor=processor, max_new_tokens=4)
    assert short(files["b"], text="What?") and short(files["a"], text="What?", processor_kwargs={"truncation": False})
    with pytest.raises(ValueError, match=r"1\.3 s long, over the limit of 1 s"):
        short(files["b"], text="What?", processor_kwargs={"truncation": False})


def test_half_precision(sensitive, files):
    half = pipeline("audio-text-to-text", model=sensitive, dtype=torch.bfloat16, max_new_tokens=4)
    assert half.model.dtype == torch.bfloat16
    assert half(files["a"], text="What?")[0]["generated_text"]


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


def test_unknown_parameters(pipe, sensitive):
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


def test_arguments_of_the_chat_template(sensitive, files):
    processor = AutoProcessor.from_pretrained(sensitive)
    template = "{{ tools | default('') }} {{ enable_thinking | default('') }} {{ word | default('') }}"
    processor.chat_template = processor.chat_template.rstrip() + template
    pipe = pipeline(
        "audio-text-to-text", model=sensitive, processor=processor, max_new_tokens=2, enable_thinking=False
    )
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
