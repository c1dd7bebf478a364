"""Local models: replies, audio tokens, failures, memory and kills; also a model of another family."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from evaluation_runs import killed_while, make_questions, make_telling, rows_of, run_of
from tiny import SAMPLING_RATE, make_tokenizer, tone
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
    pipeline,
)

from falcon3_audio.evaluation.answerers import Item, NoAudio, RunStopped
from falcon3_audio.evaluation.generate import generate
from falcon3_audio.evaluation.local_model import LocalModel
from falcon3_audio.evaluation.predictions import PREDICTIONS
from falcon3_audio.evaluation.questions import Clip, QuestionSet
from falcon3_audio.processing import load_audio


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return make_telling(checkpoint, tmp_path_factory.mktemp("telling"))


def load(folder, **options):
    return LocalModel(folder, **({"device": "cpu", "batch_size": 3, "max_new_tokens": 6} | options))


@pytest.fixture
def questions(tmp_path):
    return make_questions(tmp_path / "clips", "abcabca")


@pytest.fixture(scope="module")
def by_hand(folder):
    pipe = pipeline("audio-text-to-text", model=folder, device="cpu", max_new_tokens=6, do_sample=False)
    return lambda audio, text: pipe(audio, text=text)[0]["generated_text"]


def test_replies_are_the_pipelines(folder, questions, by_hand, tmp_path):
    assert generate(questions, load(folder), tmp_path / "out", "question") == {"answered": 7}
    rows = rows_of(tmp_path / "out")
    for question in questions.questions:
        expected = by_hand(str(tmp_path / "clips" / f"{question.audio[0].name}.wav"), question.question)
        assert rows[question.id]["reply"] == expected
    assert len({row["reply"] for row in rows.values()}) == 7
    tokens = {row["audio"][0]: row["audio_tokens"] for row in rows.values()}
    assert tokens == {"a": 9, "b": 10, "c": 11}  # 25 a second for 0.36, 0.4 and 0.44 s
    run = run_of(tmp_path / "out")
    assert run["audio_tokens"] == {"min": 9, "max": 11, "mean": (3 * 9 + 2 * 10 + 2 * 11) / 7}
    assert run["audio_check"] == "audio tokens were counted in every prompt"
    assert (run["model"], run["model_dtype"], run["device"], run["batch_size"]) == (folder, "float32", "cpu", 3)
    assert run["decoding"] == {"do_sample": False, "num_beams": 1, "max_new_tokens": 6}
    assert "suppress_tokens" in run["generation_config"]
    assert {"torch", "transformers", "soundfile"} <= set(run["versions"]) and run["peak_memory_gib"] > 0.05


def test_whether_a_reply_ended_is_recorded(folder, questions, tmp_path):
    """The model never says its end token by itself; with every token as one, each reply ends at once."""
    model = load(folder)
    generate(questions, model, tmp_path / "cut", "question")
    assert {row["finish_reason"] for row in rows_of(tmp_path / "cut").values()} == {"length"}
    model._pipe.model.generation_config.eos_token_id = list(range(model._pipe.model.config.text_config.vocab_size))
    generate(questions, model, tmp_path / "ended", "question")
    assert {row["finish_reason"] for row in rows_of(tmp_path / "ended").values()} == {"stop"}


def test_the_model_is_identified_by_its_files(folder, tmp_path):
    """As computed by `sha256sum *.json ... | sha256sum`."""
    import hashlib
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    names = sorted(path.name for path in copy.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".py"))
    lines = "".join(f"{hashlib.sha256((copy / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    before = load(str(copy)).describe()["model_commit"]
    assert before == hashlib.sha256(lines.encode()).hexdigest()
    (copy / "notes.md").write_text("seen")
    assert load(str(copy)).describe()["model_commit"] == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert load(str(copy)).describe()["model_commit"] != before


@pytest.mark.parametrize("lines", [1, 3, 4])
def test_a_killed_run_ends_with_the_same_bytes(folder, questions, tmp_path, lines):
    generate(questions, load(folder), tmp_path / "whole")
    killed_while(lambda: generate(questions, load(folder), tmp_path / "out"), lines)
    assert not (tmp_path / "out" / PREDICTIONS).exists()
    asked = []

    class Noting(LocalModel):
        def answer(self, items):
            asked.extend(item.question.id for item in items)
            return super().answer(items)

    generate(questions, Noting(folder, device="cpu", batch_size=3, max_new_tokens=6), tmp_path / "out")
    # After settings and check: q0 q3 q6 about "a", then q1 q4 about "b" and then q2 q5 about "c".
    assert asked == ["q0", "q3", "q6", "q1", "q4", "q2", "q5"][{1: 0, 3: 3, 4: 5}[lines] :]
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def sizes(letters, size, folder, tmp_path):
    questions = make_questions(tmp_path / "many", letters).questions
    batches = load(folder, batch_size=size).batches([Item(question, "", question.audio) for question in questions])
    return ["".join(item.names[0] for item in batch) for batch in batches]


def test_batches_keep_clips_together(folder, tmp_path):
    assert sizes("abcabcde", 4, folder, tmp_path) == ["aabb", "ccde"]
    assert sizes("abbbc", 3, folder, tmp_path) == ["a", "bbb", "c"]
    # A clip with more questions than a batch: its first batch, which encodes it, and its last have no other clip.
    assert sizes("abbbbbcd", 3, folder, tmp_path) == ["a", "bbb", "bb", "cd"]
    assert sizes("abc", 1, folder, tmp_path) == ["a", "b", "c"]


def test_each_clip_is_read_and_encoded_once(folder, tmp_path, monkeypatch):
    made = make_questions(tmp_path / "clips", "abaabaa")
    read, encoded = [], []

    def counted(clip):
        return Clip(clip.name, lambda: read.append(clip.name) or clip.read())

    rows = tuple(replace(question, audio=tuple(map(counted, question.audio))) for question in made.questions)
    model = load(folder, batch_size=2)
    get = model._pipe.model.get_audio_features
    monkeypatch.setattr(
        model._pipe.model, "get_audio_features", lambda x, *a, **k: encoded.append(len(x)) or get(x, *a, **k)
    )
    generate(replace(made, questions=rows), model, tmp_path / "out")
    assert read == ["a", "b"] and encoded == [1, 1]


def test_a_clip_is_encoded_anew_in_another_batch(folder, tmp_path, monkeypatch):
    """Audio features kept from an earlier batch would differ in their last digits from those of a resumed run."""
    made = make_questions(tmp_path / "clips", "ab")
    (tmp_path / "clips" / "b.wav").write_bytes((tmp_path / "clips" / "a.wav").read_bytes())
    encoded = []
    model = load(folder, batch_size=1)
    get = model._pipe.model.get_audio_features
    monkeypatch.setattr(
        model._pipe.model, "get_audio_features", lambda x, *a, **k: encoded.append(len(x)) or get(x, *a, **k)
    )
    generate(made, model, tmp_path / "out")
    assert encoded == [1, 1]


def test_a_broken_clip_costs_its_rows_only(folder, by_hand, tmp_path):
    questions = make_questions(tmp_path / "clips", "aXbX")
    assert generate(questions, load(folder, batch_size=4), tmp_path / "out", "question") == {
        "answered": 2,
        "failed": 2,
    }
    rows = rows_of(tmp_path / "out")
    assert rows["q1"]["error"] == rows["q3"]["error"] and rows["q1"]["error"].startswith("X cannot be decoded")
    assert rows["q1"]["reply"] is None and "audio_tokens" not in rows["q1"]
    for number, letter in ((0, "a"), (2, "b")):
        expected = by_hand(str(tmp_path / "clips" / f"{letter}.wav"), f"What is it, {number}?")
        assert rows[f"q{number}"]["reply"] == expected


def test_a_batch_that_fails_is_asked_one_by_one(folder, questions, tmp_path):
    whole = load(folder)
    generate(questions, whole, tmp_path / "whole")
    tried = []

    class Failing(LocalModel):
        def _generate(self, items):
            tried.append([item.question.id for item in items])
            if "q3" in tried[-1]:
                raise IndexError("index 7 is\nout of range")
            return super()._generate(items)

    generate(questions, Failing(folder, device="cpu", batch_size=3, max_new_tokens=6), tmp_path / "out")
    assert tried == [["q0", "q3", "q6"], ["q0"], ["q3"], ["q6"], ["q1", "q4"], ["q2", "q5"]]
    rows, expected = rows_of(tmp_path / "out"), rows_of(tmp_path / "whole")
    assert rows["q3"]["status"] == "failed" and rows["q3"]["error"] == "IndexError: index 7 is out of range"
    assert all(rows[identity] == expected[identity] for identity in rows if identity != "q3")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_ends_the_run_with_advice(folder, questions, tmp_path, monkeypatch, error):
    model = load(folder)
    answer = model._pipe.model.generate

    def greedy(input_ids, **kwargs):
        if len(input_ids) == 2:
            raise error
        return answer(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model._pipe.model, "generate", greedy)
    with pytest.raises(
        RunStopped, match=r"Out of memory on cpu with the questions q1, q4.*smaller --batch-size \(it was 3\)"
    ):
        generate(questions, model, tmp_path / "out")
    assert not (tmp_path / "out" / PREDICTIONS).exists()
    monkeypatch.undo()
    assert generate(questions, load(folder), tmp_path / "out") == {"answered": 7}


def test_controls_change_what_is_heard(folder, questions, by_hand, tmp_path):
    for control in ("silence", "shuffled", "text-only"):
        generate(questions, load(folder), tmp_path / control, "question", control, seed=1)
    silence, shuffled, text = (rows_of(tmp_path / name) for name in ("silence", "shuffled", "text-only"))
    for question in questions.questions:
        path = tmp_path / "clips" / f"{question.audio[0].name}.wav"
        zeros = io.BytesIO()
        soundfile.write(zeros, 0 * load_audio(str(path)), SAMPLING_RATE, format="WAV")
        assert silence[question.id]["reply"] == by_hand(zeros.getvalue(), question.question)
        other = tmp_path / "clips" / f"{shuffled[question.id]['heard'][0]}.wav"
        assert other != path and shuffled[question.id]["reply"] == by_hand(str(other), question.question)
        assert text[question.id]["reply"] == by_hand(None, question.question)
        assert silence[question.id]["audio_tokens"] > 0 == text[question.id]["audio_tokens"]
    assert run_of(tmp_path / "text-only")["audio_tokens"] is None


def test_several_clips_in_one_question(folder, questions, by_hand, tmp_path):
    first, second, *_ = questions.questions
    both = replace(first, audio=(second.audio[0], first.audio[0]))
    generate(QuestionSet("jsonl", (both, second), {}), load(folder), tmp_path / "out", "question")
    rows = rows_of(tmp_path / "out")
    paths = [str(tmp_path / "clips" / f"{letter}.wav") for letter in "ba"]
    assert rows["q0"]["audio"] == ["b", "a"] and rows["q0"]["audio_tokens"] == 10 + 9
    assert rows["q0"]["reply"] != rows["q1"]["reply"] == by_hand(paths[0], second.question)


QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for item in message['content'] %}"
    "{% if item['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny random Qwen2-Audio, saved as transformers saves one."""
    folder = tmp_path_factory.mktemp("qwen")
    special = ["<|endoftext|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = make_tokenizer(special, None, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=16), tokenizer, chat_template=QWEN_TEMPLATE
    ).save_pretrained(folder)
    audio = dict(num_mel_bins=16, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
    text = dict(model_type="qwen2", hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=300)
    text |= dict(num_attention_heads=2, num_key_value_heads=2)
    tokens = dict(audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"), pad_token_id=0, eos_token_id=5)
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, **tokens)
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    for weight in model.parameters():  # larger than initialised, so that replies depend on the clip
        weight.data.normal_(0, 0.5)
    model.save_pretrained(folder)
    return str(folder)


def test_another_family_of_models(qwen, tmp_path):
    clip = io.BytesIO()
    soundfile.write(clip, tone(2.0, rate=44_100), 44_100, format="FLAC")  # its processor cannot resample
    made = make_questions(tmp_path / "clips", "ab")
    heard = replace(made.questions[0], audio=(Clip("flac", clip.getvalue),))
    both = replace(made, questions=(heard, made.questions[1]))
    assert generate(both, load(qwen), tmp_path / "out") == {"answered": 2}
    rows = rows_of(tmp_path / "out")
    assert rows["q0"]["audio_tokens"] == 50 and rows["q1"]["audio_tokens"] == 10  # 25 a second for 2 and 0.4 s
    generate(both, load(qwen, batch_size=1), tmp_path / "one-by-one")
    assert rows == rows_of(tmp_path / "one-by-one")  # prompts are padded on the left, unlike its tokenizer's default
    assert rows["q0"]["reply"] != rows["q1"]["reply"]


def test_a_processor_that_passes_over_the_audio_ends_the_run(folder, questions, tmp_path, monkeypatch):
    model = load(folder)
    apply = model._pipe.processor.apply_chat_template

    def deaf(chats, **options):
        return apply([[{"role": "user", "content": chat[0]["content"][-1:]}] for chat in chats], **options)

    monkeypatch.setattr(model._pipe.processor, "apply_chat_template", deaf)
    with pytest.raises(NoAudio, match="Falcon3AudioProcessor made a prompt without audio tokens"):
        generate(questions, model, tmp_path / "out")
    assert not (tmp_path / "out" / PREDICTIONS).exists()
    assert generate(questions, model, tmp_path / "text", control="text-only") == {"answered": 7}


def test_what_cannot_be_loaded(folder, backbone_folders, tmp_path):
    with pytest.raises(ValueError, match="Unrecognized model"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be loaded as a model with audio input: Processor was loaded"):
        load(backbone_folders[1])
    for device in ("gpu", "mps" if torch.cuda.is_available() else "cuda"):
        with pytest.raises(ValueError, match="cannot be loaded"):
            load(folder, device=device)
