"""The demo without a browser: what can be asked, the model's input, streams that end, the command line."""

import configparser
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from ffmpeg_files import RATE, STEREO, flac_of_a_stream, with_ffmpeg
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from tiny import SAMPLING_RATE, question, tokenized, tone

from falcon3_audio.demo import app
from falcon3_audio.demo.conversation import Assistant, ConversationError, Limits, Turn, read_clip
from falcon3_audio.demo.examples import write_examples
from falcon3_audio.processing import load_audio


ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(seconds=3, megabytes=0.5, clips=2, characters=100, new_tokens=64)


@pytest.fixture(scope="module")
def assistant(checkpoint):
    assistant = Assistant.load(checkpoint, LIMITS)
    # Untrained, it would hardly hear: every clip would get the same answer.
    for layer in (assistant.model.model.audio_tower.conv1, assistant.model.model.audio_tower.conv2):
        layer.weight.data *= 10
    return assistant


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of a low and a high tone."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / "low.wav", folder / "high.wav"]
    for path, pitch in zip(paths, (300, 2000)):
        soundfile.write(path, tone(1.2, pitch), SAMPLING_RATE)
    return [str(path) for path in paths]


def answer(assistant, prompt, **options) -> str:
    return "".join(assistant.stream(prompt.inputs, 12, **options))


def user(text, *paths):
    files = [{"type": "file", "file": {"path": path}} for path in paths]
    return {"role": "user", "content": [*files, {"type": "text", "text": text}], "metadata": None}


def bot(text, title=None):
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": {"title": title}}


# --- what can be asked ---


def test_a_clip_is_read_as_the_processor_reads_it(clips, tmp_path):
    stereo = tmp_path / "stereo.flac"
    soundfile.write(stereo, np.stack([tone(1, rate=44_100)] * 2, 1), 44_100)
    for path in (clips[0], str(stereo)):
        clip = read_clip(path, LIMITS)
        np.testing.assert_array_equal(clip.samples, load_audio(path))
        assert clip.name == Path(path).name
    assert clip.seconds == 1.0


def test_files_that_cannot_be_used_are_named_without_their_folder(tmp_path, monkeypatch, caplog):
    def said(name, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConversationError) as error:
            read_clip(str(tmp_path / name), LIMITS)
        assert str(tmp_path) not in str(error.value)
        return str(error.value)

    soundfile.write(tmp_path / "whole.wav", tone(1), SAMPLING_RATE)
    whole = (tmp_path / "whole.wav").read_bytes()
    with caplog.at_level(logging.WARNING):
        refusal = said("broken.mp3", b"no sound at all" * 20)
    assert refusal.startswith("broken.mp3 cannot be read here") and "wav, mp3, flac or ogg" in refusal
    assert "install" not in refusal and "soundfile reads" in caplog.text  # the server's log has that
    assert "empty.wav) is empty" in said("empty.wav", b"")
    assert "cut.wav) is truncated" in said("cut.wav", whole[:-100])
    assert "large.wav has 0.6 MB; the limit is 0.5 MB" in said("large.wav", bytes(600_000))
    assert "gone.wav is no longer on the server" in said("gone.wav")
    monkeypatch.setattr("falcon3_audio.demo.conversation.load_audio", None)  # too long: not even decoded
    soundfile.write(tmp_path / "long.flac", np.zeros(200 * SAMPLING_RATE), SAMPLING_RATE)
    assert "long.flac is 200.0 s long; the limit is 3 s" in said("long.flac")


def test_recordings_of_browsers_are_heard(tmp_path):
    (tmp_path / "recording.webm").write_bytes(with_ffmpeg("webm", "libopus", rate=48_000))
    (tmp_path / "recording.m4a").write_bytes(with_ffmpeg("ipod", "alac"))
    clip = read_clip(str(tmp_path / "recording.m4a"), LIMITS)
    np.testing.assert_allclose(clip.samples, load_audio(STEREO, RATE), atol=2**-14)  # ALAC keeps 16 bits
    assert (
        abs(len(read_clip(str(tmp_path / "recording.webm"), LIMITS).samples) / SAMPLING_RATE - 2.0 * 44_100 / 48_000)
        < 0.1
    )
    with pytest.raises(ConversationError, match="recording.webm.* is longer than 1 s"):
        read_clip(str(tmp_path / "recording.webm"), Limits(seconds=1))


def test_a_flac_that_does_not_say_how_long_it_is_is_heard_up_to_the_limit(tmp_path):
    path = tmp_path / "stream.flac"
    path.write_bytes(flac_of_a_stream(tone(1.5), SAMPLING_RATE))
    assert read_clip(str(path), LIMITS).seconds == 1.5
    path.write_bytes(flac_of_a_stream(tone(4), SAMPLING_RATE))
    with pytest.raises(ConversationError, match="stream.flac.* is longer than 3 s"):
        read_clip(str(path), LIMITS)


def test_turns_that_cannot_be_answered_say_what_to_do(assistant, clips):
    low, high = clips

    def said(*turns, **options) -> str:
        with pytest.raises(ConversationError) as error:
            assistant.prepare(turns, **options)
        return str(error.value)

    first = Turn("What?", (low,), "A tone.")
    assert "question is empty" in said(first, Turn(" \n"))
    assert "no clip yet" in said(Turn("What do you hear?"))
    assert "has 3 clips; the limit is 2" in said(first, Turn("And now?", (high, low)))
    assert "The question has 101 characters; the limit is 100" in said(Turn("?" * 101, (low,)))
    assert "The system prompt has 101 characters" in said(Turn("What?", (low,)), system_prompt="x" * 101)
    assert "contains the audio placeholder" in said(Turn(f"What is {assistant.processor.audio_token}?", (low,)))
    length = assistant.prepare([first._replace(answer=None)]).inputs["input_ids"].shape[1]
    room = assistant.model.config.get_text_config().max_position_embeddings
    assistant.prepare([first._replace(answer=None)], max_new_tokens=room - length)
    assert f"takes {length} tokens, and the answer up to {room - length + 1}; the model holds {room}" in said(
        first._replace(answer=None), max_new_tokens=room - length + 1
    )


@pytest.mark.parametrize("limit", [{"seconds": 0}, {"megabytes": float("nan")}, {"clips": -1}, {"seconds": np.inf}])
def test_limits_check_themselves(limit):
    with pytest.raises(ValueError, match=f"limit on {next(iter(limit))} must be a number over 0"):
        Limits(**limit)


# --- the model's input and its answers ---


def test_the_prompt_is_the_whole_conversation(assistant, clips):
    low, high = clips
    turns = [Turn("What?", (low,), "A tone."), Turn("Higher?", (high,))]
    prompt = assistant.prepare(turns, "Be brief.")
    chat = [
        {"role": "system", "content": "Be brief."},
        *question(tone(1.2, 300), text="What?"),
        {"role": "assistant", "content": "A tone."},
        *question(tone(1.2, 2000), text="Higher?"),
    ]
    expected = tokenized(assistant.processor, chat, add_generation_prompt=True)
    assert torch.equal(prompt.inputs["input_ids"], expected["input_ids"])
    # The files have 16 bits.
    torch.testing.assert_close(prompt.inputs["input_features"], expected["input_features"], atol=0.05, rtol=0)
    assert [clip.name for clip in prompt.clips] == ["high.wav"]
    assert [clip.name for clip in assistant.prepare([turns[0], Turn("Sure?")]).clips] == ["low.wav"]
    system = assistant.processor.tokenizer.encode("<|system|>")
    assert prompt.inputs["input_ids"][0, : len(system)].tolist() == system
    without = assistant.prepare(turns, "  ").inputs["input_ids"][0, : len(system)].tolist()
    assert without != system


def test_the_stream_is_what_generate_gives(assistant, clips):
    inputs = assistant.prepare([Turn("What?", tuple(clips))]).inputs
    tokens = assistant.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    whole = assistant.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(assistant.stream(inputs, 12)) == whole != ""
    torch.manual_seed(0)
    sampled = {"".join(assistant.stream(inputs, 12, temperature=2.0)) for _ in range(3)}
    assert len(sampled) == 3
    for temperature in (1e-4, 1e-40):  # below 1e-5 decoding is greedy: dividing by it would overflow
        assert "".join(assistant.stream(inputs, 12, temperature=temperature)) == whole


@pytest.fixture
def steps(assistant):
    """One item per forward pass of the model; `gate` blocks the passes while it is cleared."""
    passes, gate = [], threading.Event()
    gate.set()

    def count(*_):
        gate.wait(10)
        passes.append(1)

    hook = assistant.model.register_forward_pre_hook(count)
    passes_and_gate = passes, gate
    yield passes_and_gate
    gate.set()
    hook.remove()


def spaced(assistant, monkeypatch):
    """Answers with a space after every letter, so that each arrives separately, and that never stop by themselves."""
    vocabulary = assistant.processor.tokenizer.get_vocab()
    keep = {index for token, index in vocabulary.items() if re.fullmatch("Ġ[a-z]+", token)}
    suppressed = [index for index in range(300) if index not in keep]
    monkeypatch.setattr(assistant.model.generation_config, "suppress_tokens", suppressed)


def test_closing_the_stream_ends_the_generation(assistant, clips, steps, monkeypatch):
    passes, gate = steps
    spaced(assistant, monkeypatch)
    inputs = assistant.prepare([Turn("What?", (clips[0],))]).inputs
    assert len("".join(assistant.stream(inputs, 40)).split()) == len(passes) == 40
    passes.clear()
    stream = assistant.stream(inputs, 40)
    next(stream)
    gate.clear()
    closing = threading.Thread(target=stream.close)
    closing.start()
    held = len(passes)
    gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert len(passes) <= held + 2 < 40  # the blocked pass, and one that had already started


def test_answers_at_the_same_time_are_as_alone(assistant, clips):
    prompts = [assistant.prepare([Turn("What?", (path,))]) for path in clips]
    alone = [answer(assistant, prompt) for prompt in prompts]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(lambda prompt: answer(assistant, prompt), prompts * 6))
    assert together == alone * 6


def test_an_error_of_the_model_ends_the_stream_and_the_next_answer_comes(assistant, clips, monkeypatch, caplog):
    chat = app.Chat(assistant)
    message = {"text": "What?", "files": [clips[0]]}
    prompt = assistant.prepare([Turn("What?", (clips[0],))])

    def failing(*_, **__):
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(assistant.model, "generate", failing)
        with pytest.raises(RuntimeError, match="a kernel failed"):
            list(assistant.stream(prompt.inputs))
        with caplog.at_level(logging.ERROR):
            (said, _), *more = chat.respond(message, [], "", 12, 0)
        assert said["metadata"] == {"title": app.NOT_ANSWERED} and "failed with RuntimeError" in said["content"]
        assert not more and "a kernel failed" in caplog.text
        patch.setattr(assistant.model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        ((said, _),) = chat.respond(message, [], "", 12, 0)
        assert "ran out of memory" in said["content"]
    assert list(chat.respond(message, [], "", 12, 0))[-1][0] == answer(assistant, prompt)


def test_a_response_grows_and_brings_the_picture_once(assistant, clips, monkeypatch):
    spaced(assistant, monkeypatch)
    responses = list(app.Chat(assistant).respond({"text": "What?", "files": clips}, [], "", 12, 0))
    texts, figures = zip(*responses)
    assert len(texts) > 5 and all(after.startswith(before) for before, after in zip(texts, texts[1:]))
    assert [axes.get_title().split(":")[0] for axes in figures[0].axes] == ["low.wav", "high.wav"]
    assert all(figure == gradio.skip() for figure in figures[1:])


def test_an_answer_of_nothing_is_said(assistant, clips):
    chat = app.Chat(assistant)
    chat.stream = lambda *_: iter([" ", "\n"])
    *_, (said, _) = chat.respond({"text": "What?", "files": clips}, [], "", 12, 0)
    assert "gave an empty answer" in said["content"]


def test_what_was_not_answered_is_left_out_of_the_prompt(assistant, clips):
    low, high = clips
    history = [
        user("What?", low),
        bot("A tone."),
        user("This?", "broken.wav"),
        bot("It is damaged.", app.NOT_ANSWERED),
    ]
    history += [user("Stopped", high), user("And?"), bot("Still a tone.")]
    assert app.answered_turns(history) == [Turn("What?", (low,), "A tone."), Turn("And?", (), "Still a tone.")]
    # A repeated question has its files as Gradio's dicts.
    *_, (said, _) = app.Chat(assistant).respond({"text": "It?", "files": [{"path": high}]}, history, "", 12, 0)
    expected = assistant.prepare([*app.answered_turns(history), Turn("It?", (high,))])
    assert said == answer(assistant, expected)


def test_after_a_refused_clip_nothing_older_is_shown_or_answered(assistant, clips, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no sound at all")
    chat, broken = app.Chat(assistant), str(tmp_path / "broken.wav")
    history = [user("What?", clips[0]), bot("A tone.")]
    ((said, shown),) = chat.respond({"text": "This?", "files": [broken]}, history, "", 12, 0)
    assert "broken.wav cannot be read" in said["content"] and shown is None
    history += [user("This?", broken), bot(said["content"], app.NOT_ANSWERED)]
    for _ in range(2):
        ((said, shown),) = chat.respond({"text": "Is it high?", "files": []}, history, "", 12, 0)
        assert "last clip was not heard" in said["content"] and shown == gradio.skip()
        history += [user("Is it high?"), bot(said["content"], app.NOT_ANSWERED)]
    *_, (answered, _) = chat.respond({"text": "And this?", "files": [clips[1]]}, history, "", 12, 0)
    history += [user("And this?", clips[1]), bot(answered)]
    *_, (said, _) = chat.respond({"text": "Is it high?", "files": []}, history, "", 12, 0)
    assert said == answer(assistant, assistant.prepare([*app.answered_turns(history), Turn("Is it high?")]))
    assert not app.was_unheard(history) and app.was_unheard([*history, user("Stopped", clips[0]), bot("")])


def test_a_chat_goes_on_through_the_api(assistant, clips):
    page = app.build_page(assistant, "a model", [], concurrency=1)
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    try:
        client = Client(url, verbose=False)
        asked = [("What?", clips[:1]), ("Sure?", []), ("", []), ("And this?", clips[1:])]
        messages = [{"text": text, "files": [*map(handle_file, paths)]} for text, paths in asked]
        said = [client.predict(message, "", 12, 0, api_name="/chat")[0] for message in messages]
    finally:
        page.close()
    turns = []
    for (text, paths), heard in zip(asked, said):
        if not text:
            assert "question is empty" in str(heard)
            continue
        turns.append(Turn(text, tuple(paths)))
        assert heard == answer(assistant, assistant.prepare(turns)).strip()
        turns[-1] = turns[-1]._replace(answer=heard)


def test_the_page_names_the_checkpoint_and_not_its_place(tmp_path):
    for folder, name in (
        ("runs/barks/model", "barks"),
        ("runs/barks/checkpoint-200", "barks"),
        ("falcon-1b", "falcon-1b"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        assert app.name_of(str(tmp_path / folder)) == name
    assert app.name_of("me/my-model") == "me/my-model"


def test_on_zero_gpu_only_the_generation_asks_for_a_gpu(assistant, clips, monkeypatch):
    calls = []

    class Spaces:
        @staticmethod
        def GPU(task):
            def on_gpu(*arguments):
                calls.append(arguments)
                yield from task(*arguments)

            return on_gpu

    monkeypatch.setattr(app, "spaces", Spaces)
    chat = app.Chat(assistant)
    ((said, _),) = chat.respond({"text": "", "files": clips}, [], "", 12, 0)
    assert "question is empty" in said["content"] and not calls
    list(chat.respond({"text": "What?", "files": clips}, [], "", 12, 0.5))
    ((inputs, *options),) = calls
    assert options == [12, 0.5] and {value.device.type for value in inputs.values()} == {"cpu"}


# --- the examples, the command and the Space ---


def test_the_examples_are_sounds_within_the_limits(tmp_path):
    examples = write_examples(tmp_path)
    paths = [path for _, files in examples for path in files]
    assert len(examples) >= 3 and len(set(paths)) == len(paths)
    for path in paths:
        clip = read_clip(path, Limits())
        assert 0.2 < clip.seconds < 5 and 0.1 < np.abs(clip.samples).max() <= 0.5
    # Three beeps: three loud stretches.
    loud = np.abs(load_audio(str(tmp_path / "beeps.wav"))).reshape(-1, 80).max(1) > 0.05
    assert (np.diff(loud.astype(int), prepend=0) == 1).sum() == 3


def test_what_cannot_be_started_is_one_line(checkpoint, backbone_folders, tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert app.main([*map(str, arguments)]) == 1
        error = capsys.readouterr().err.splitlines()[-1]  # after progress bars
        assert error.startswith("falcon3-audio demo-app: ")
        return error

    monkeypatch.delenv(app.MODEL_VARIABLE, raising=False)
    assert f"set the variable {app.MODEL_VARIABLE}" in said()
    assert f"{tmp_path / 'nowhere'} is not a local folder. " in said(tmp_path / "nowhere")
    assert "config.json is a file; expected the folder of a checkpoint" in said(Path(checkpoint) / "config.json")
    assert "not a Falcon3-Audio checkpoint" in said(backbone_folders[1])
    assert "limit on seconds must be a number over 0, got nan" in said(checkpoint, "--max-seconds", "nan")
    assert "limit on megabytes" in said(checkpoint, "--max-mb", "0")
    assert "hears at most 300 s of a clip" in said(checkpoint, "--max-seconds", "301")
    assert "--concurrency and --queue must be 1 or more" in said(checkpoint, "--concurrency", "0")
    assert "There is no device 'gramophone'" in said(checkpoint, "--device", "gramophone")
    if not torch.cuda.is_available():
        assert "torch sees no GPU here" in said(checkpoint, "--device", "cuda:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "port" in said(checkpoint, "--port", taken.getsockname()[1])


def test_the_help_says_what_holds_where_nothing_is_given(capsys):
    with pytest.raises(SystemExit):
        app.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "None" not in said and "longest clip (default: 120)" in said
    assert "(default: GRADIO_SERVER_NAME, else 127.0.0.1)" in said and "turned away (default: 20)" in said


def test_the_page_has_the_limits(assistant):
    page = app.build_page(assistant, "a model", [], concurrency=3)
    config = page.get_config_file()
    sliders = {c["props"]["label"]: c["props"] for c in config["components"] if c["type"] == "slider"}
    assert sliders["Longest answer (tokens)"]["maximum"] == sliders["Longest answer (tokens)"]["value"] == 64
    assert page.analytics_enabled is False
    chat = [fn for fn in page.fns.values() if fn.api_name == "chat"]
    assert [fn.concurrency_limit for fn in chat] == [3]
    texts = " ".join(c["props"].get("value") or "" for c in config["components"] if c["type"] == "markdown")
    assert "up to 2 clips of 3 s and 0.5 MB" in texts


def test_the_file_runs_as_a_space_does(tmp_path):
    """From a folder that has the package too; `spaces` is imported before torch, and the variable names the model."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    rooms = dict(line.split(" = ") for line in parser["options"]["package_dir"].strip().splitlines())
    for name in ("falcon3_audio", "falcon3_audio.processing", "falcon3_audio.training", "falcon3_audio.demo"):
        shutil.copytree(ROOT / rooms[name], tmp_path / name.replace(".", "/"), dirs_exist_ok=True)
    shutil.copy(ROOT / "demo" / "app.py", tmp_path)
    (tmp_path / "spaces.py").write_text(
        "import atexit, sys\nprint('torch' in sys.modules)\nGPU = print\n"
        "atexit.register(lambda: print(sys.modules['falcon3_audio'].__file__))\n"
    )
    environment = os.environ | {app.MODEL_VARIABLE: str(tmp_path / "my-model")}
    run = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 1 and "my-model" in run.stderr.strip().splitlines()[-1], run.stderr
    assert run.stdout.splitlines() == ["False", str(tmp_path / "falcon3_audio" / "__init__.py")]


def test_the_spaces_metadata_and_requirements_fit():
    _, front, _ = (ROOT / "demo" / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["sdk"] == "gradio" and metadata["sdk_version"] == gradio.__version__
    assert (ROOT / "demo" / metadata["app_file"]).exists() and metadata["license"] == "apache-2.0"
    assert {"title", "models", "python_version"} <= metadata.keys() and len(metadata["short_description"]) <= 60

    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")

    def requirements(text):
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}

    ours = requirements((ROOT / "demo" / "requirements.txt").read_text())
    package = requirements(parser["options"]["install_requires"])
    extras = parser["options.extras_require"]
    extra = requirements(extras["demo"].replace("falcon3-audio[formats]", extras["formats"]))
    assert extra.pop("gradio").contains(gradio.__version__)
    for name, specifier in (package | extra).items():
        assert set(specifier) <= set(ours[name]), name
