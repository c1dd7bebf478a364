"""Samples and their rate in the pipeline's inputs, and what only looks like them."""

import numpy as np
import pytest
import torch
from pipeline_calls import texts
from tiny import tone

from falcon3_audio import pipeline_inputs_falcon3_audio as pipeline_inputs
from falcon3_audio.processing import UnreadableAudioError
from falcon3_audio.processing.audio_inputs_falcon3_audio import could_be_rate, is_list_of_clips, is_with_rate


CLIP = tone(0.5, 300)


def test_samples_with_their_rate(pipe):
    clip = tone(0.5, 700, 44_100)
    wanted = pipe(clip, text="What?", sampling_rate=44_100)[0]["generated_text"]
    for pair in ((clip, 44_100), (44_100, clip), (torch.from_numpy(clip), 44_100), [clip, 44_100], (44_100.0, clip)):
        assert pipe(pair, text="What?")[0]["generated_text"] == wanted
        assert texts(pipe([pair, pair], text="What?", batch_size=2)) == [wanted, wanted]
        assert pipe({"audio": pair, "text": "What?"})[0]["generated_text"] == wanted
        items = [{"type": "audio", "audio": pair}, {"type": "text", "text": "What?"}]
        assert pipe([{"role": "user", "content": items}])[0]["generated_text"] == wanted
    for rate in (torch.tensor(44_100), np.array(44_100), torch.tensor(44_100.0)):
        for pair in ((clip, rate), (rate, torch.from_numpy(clip)), [clip, rate]):
            assert pipe(pair, text="What?")[0]["generated_text"] == wanted
            assert texts(pipe([pair, pair], text="What?")) == [wanted, wanted]


WAVEFORM = torch.from_numpy(CLIP)[None]
NOT_A_PAIR = {
    "torchaudio": (WAVEFORM, 16_000, "SO IT GOES", 1, 2, 3),
    "rate as text": (CLIP, "16000"),
    "no rate": (CLIP, None),
    "true as a rate": (CLIP, True),
    "file": ("clip.wav", 16_000),
    "bytes": (b"RIFF", torch.tensor(16_000)),
}


@pytest.mark.parametrize("kind", NOT_A_PAIR)
def test_a_tuple_that_is_no_pair_is_not_taken_for_several_clips(pipe, kind):
    source = NOT_A_PAIR[kind]
    parts = ", ".join(type(part).__name__ for part in source)
    for arguments in (
        {"audio": source, "text": "What?"},
        {"audio": [source, source], "text": "What?"},
        {"audio": {"audio": source, "text": "What?"}},
        {"audio": [[source]], "text": "What?"},
        {"audio": source},
    ):
        with pytest.raises(ValueError, match=rf"is the tuple \({parts}\); expected .*\(samples, rate\)"):
            pipe(**arguments)


def test_the_processor_has_the_same_rules_of_what_is_one_clip():
    """The two are in other folders until a checkpoint is saved."""
    clip, tensor = CLIP, torch.from_numpy(CLIP)
    scalars = (8_000, 0.5, True, np.float32(0.5), np.int64(8_000), np.array(8_000), torch.tensor(8_000.0))
    others = (
        None,
        "8000",
        "a.wav",
        b"RIFF",
        clip,
        tensor,
        clip.tolist(),
        {"array": clip},
        [clip, 8_000],
        (clip, 8_000),
    )
    parts = (*scalars, *others)
    lists = [
        [],
        *([part] for part in parts),
        *([one, other] for one in parts for other in parts),
        *NOT_A_PAIR.values(),
    ]
    for source in [*lists, *map(tuple, lists)]:
        assert pipeline_inputs._is_with_rate(source) == is_with_rate(source)
        assert pipeline_inputs.is_many(source) == is_list_of_clips(source)
        assert not (is_with_rate(source) and is_list_of_clips(source))


def test_a_sampling_rate_under_another_name_is_refused(pipe):
    """Otherwise the samples would be read at 16 kHz."""
    clip = tone(0.5, 700, 44_100)
    question = {"type": "text", "text": "What?"}
    for name in ("sample_rate", "sr", "rate"):
        for source in (clip, clip.tolist(), torch.from_numpy(clip), {"array": clip}, [clip, clip]):
            row = {"audio": source, "text": "What?", name: 44_100}
            for rows, options in (
                (row, {}),
                ([row], {}),
                ((one for one in [row]), {}),
                (row, {"sampling_rate": 16_000}),
            ):
                with pytest.raises(ValueError, match=rf"'sampling_rate'; there is \['{name}'\].*or remove it"):
                    list(pipe(rows, **options))
        for options in ({}, {"sampling_rate": 16_000}):
            chat = [{"role": "user", "content": [{"type": "audio", "audio": clip, name: 44_100}, question]}]
            with pytest.raises(ValueError, match=rf"not under 'sampling_rate'; there is \['{name}'\]"):
                pipe(chat, **options)
    wanted = pipe(clip, text="What?", sampling_rate=44_100)[0]["generated_text"]
    row = {"audio": clip, "text": "What?", "id": 7}  # columns next to samples whose rate is known
    assert pipe(row, sampling_rate=44_100)[0]["generated_text"] == wanted
    assert pipe(row | {"sampling_rate": 44_100})[0]["generated_text"] == wanted
    assert pipe(row | {"audio": (clip, 44_100)})[0]["generated_text"] == wanted
    assert pipe(row | {"audio": {"array": clip, "sampling_rate": 44_100}})[0]["generated_text"] == wanted


def test_keys_that_are_no_rate_go_with_samples_of_unknown_rate(pipe):
    clip = CLIP
    wanted = pipe(clip, text="What?")[0]["generated_text"]
    for more in (
        {"id": "a"},
        {"cache_control": {"type": "ephemeral"}},
        {"label": "dog"},
        {"index": 0},
        {"loss": False},
    ):
        item = {"type": "audio", "audio": clip, **more}
        chat = [{"role": "user", "content": [item, {"type": "text", "text": "What?"}]}]
        for options in ({}, {"sampling_rate": 16_000}):
            assert pipe({"audio": clip, "text": "What?", **more}, **options)[0]["generated_text"] == wanted
            assert pipe(chat, **options)[0]["generated_text"] == wanted


def test_what_could_be_a_rate_is_what_the_processor_takes_for_one():
    rates = [
        1_000,
        44_100,
        22_050.5,
        "8000",
        "44100.0",
        np.int64(8_000),
        np.array(8_000),
        torch.tensor(8e3),
        [8_000] * 2,
    ]
    others = [None, True, 0, 7, 999, 10**9, float("nan"), "", "dog", "7", "9" * 5000, {}, {"a": 8_000}, [], ["a"]]
    others += [torch.float32, torch.device("cpu"), np.zeros(9), np.zeros((0, 2)), object()]
    for value in (*rates, *others):
        wanted = any(value is rate for rate in rates)
        assert could_be_rate(value) == pipeline_inputs._could_be_rate(value) == wanted, value


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_errors_say_which_of_several_inputs_they_are_about(pipe, batch_size):
    """One in a batch with others, one alone, one that is no request."""
    good, empty = (CLIP, 16_000), (CLIP[:0], 16_000)
    for place in (1, 4):
        clips = [good] * place + [empty] + [good] * (4 - place)
        with pytest.raises(UnreadableAudioError, match=f"^Input {place}: The audio in message 0 is empty"):
            pipe(clips, text="What?", batch_size=batch_size)
        rows = [{"audio": clip, "text": "What?"} for clip in clips]
        with pytest.raises(UnreadableAudioError, match=f"^Input {place}: The audio in message 0 is empty"):
            list(pipe(iter(rows), batch_size=batch_size))
        rows[place] = {"audio": 5, "text": "What?"}
        with pytest.raises(TypeError, match=f"^Input {place}: The audio in message 0 is a int"):
            pipe(rows, batch_size=batch_size)
        rows[place] = {"audio": None, "text": None}
        with pytest.raises(ValueError, match=f"^Input {place}: One of the inputs is None"):
            pipe(rows, batch_size=batch_size)
        with pytest.raises(ValueError, match=f"^Input {place}: One of the clips is None"):
            pipe([*clips[:place], None, *clips[place + 1 :]], text="What?")
    with pytest.raises(UnreadableAudioError, match="^The audio in message 0 is empty"):
        pipe(empty, text="What?")
