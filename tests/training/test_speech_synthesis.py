"""Speech: that a row decides how it sounds, that voices vary, that padding is not speech, and what cannot be spoken.

espeak-ng's samples are compared with its own output resampled by scipy; a model's with the model called directly.
"""

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from tiny_tts import SAMPLES_PER_FRAME, VITS_LETTERS, make_vits
from transformers import VitsModel, VitsTokenizer

from falcon3_audio.training.prepare import speech_synthesis
from falcon3_audio.training.prepare.espeak import speak, variants, voices
from falcon3_audio.training.prepare.speech_synthesis import ESPEAK_PITCHES, ESPEAK_SPEEDS, REFUSED, Job, make_tts


TEXT = "name three rivers"
LONGER = "name three long rivers of europe and say where they rise"


def spoken(tts, *jobs):
    """The speeches of one batch."""
    [speeches] = tts.speak([[Job(*job) for job in jobs]])
    return speeches


def samples(speech):
    waveform, rate = soundfile.read(io.BytesIO(speech.flac), dtype="float32")
    assert rate == 16_000 and waveform.ndim == 1 and len(waveform) / rate == speech.seconds
    return waveform


@pytest.fixture(scope="module")
def vits(tmp_path_factory):
    """A folder with a model of three speakers without noise: its samples depend only on text, speaker and pace."""
    return make_vits(tmp_path_factory.mktemp("vits"), noise_scale=0.0, noise_scale_duration=0.0)


def directly(folder, text, manner):
    """The waveform that the model gives outside the pipeline."""
    inputs = VitsTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        output = VitsModel.from_pretrained(folder)(**inputs, speaker_id=int(manner.voice), speaking_rate=manner.speed)
    return output.waveform[0].numpy()


def test_espeak_says_what_it_was_told():
    [speech] = spoken(make_tts("espeak-ng", workers=1), (7, TEXT))
    waveform, rate = speak(TEXT, speech.manner.voice, int(speech.manner.speed), speech.manner.pitch)
    assert rate == 22_050
    expected = resample_poly(waveform, 320, 441)
    heard = samples(speech)
    assert abs(len(heard) - len(expected)) <= 1
    length = min(len(heard), len(expected))
    assert np.corrcoef(heard[:length], expected[:length])[0, 1] > 0.995


def test_a_row_sounds_the_same_in_any_company():
    jobs = [(row, TEXT) for row in range(24)]
    forward = spoken(make_tts("espeak-ng", seed=3, workers=1), *jobs)
    backward = spoken(make_tts("espeak-ng", seed=3, workers=1), *reversed(jobs))
    assert forward == backward[::-1]
    assert [speech.row for speech in forward] == list(range(24))
    assert len({speech.manner for speech in forward}) == 24
    assert spoken(make_tts("espeak-ng", seed=4, workers=1), (0, TEXT))[0].manner != forward[0].manner


def test_every_voice_is_reproducible():
    """Some of espeak-ng's variants draw noise that cannot be seeded; those must not be among the voices used."""
    tags, women, men = speech_synthesis.espeak_voices("en")
    text = "sh"
    first = {name: speak(text, f"en-us+{name}")[0].tobytes() for name in women + men}
    again = {name: speak(text, f"en-us+{name}")[0].tobytes() for name in reversed(women + men)}
    assert [name for name in first if first[name] != again[name]] == []
    assert set(tags) < set(voices("en")) and len(women) > 10 and len(men) > 40
    genders = variants()
    assert {genders[name] for name in women} == {"female"} and {genders[name] for name in men} == {"male"}


def test_voices_vary(monkeypatch):
    # Only what is drawn matters here, not the audio.
    monkeypatch.setattr(speech_synthesis, "speak", lambda *_: (np.full(2205, 0.1, np.float32), 22_050))
    manners = [speech.manner for speech in spoken(make_tts("espeak-ng", workers=1), *((n, "a") for n in range(2000)))]
    tags = [manner.voice.partition("+")[0] for manner in manners]
    genders = [variants()[manner.voice.partition("+")[2]] for manner in manners]
    assert set(tags) == set(voices("en")) - {"en-shaw"}
    assert 0.45 < genders.count("female") / 2000 < 0.55
    assert len({manner.voice for manner in manners}) > 300
    for values, limits in (([m.speed for m in manners], ESPEAK_SPEEDS), ([m.pitch for m in manners], ESPEAK_PITCHES)):
        assert (min(values), max(values)) == limits
        assert np.mean(values) == pytest.approx(np.mean(limits), rel=0.03)


def test_other_languages():
    [speech] = spoken(make_tts("espeak-ng", "fr", workers=1), (0, "Où est la gare ?"))
    assert speech.manner.voice.startswith("fr-") and 0.4 < speech.seconds < 3
    with pytest.raises(ValueError, match="got the language 'xx', for which espeak-ng has no voice; it has af, am"):
        make_tts("espeak-ng", "xx")


def test_failures_are_answers():
    digits = "123456789012345678 " * 15
    nothing, long, fine = spoken(make_tts("espeak-ng", workers=1), (0, "..."), (1, digits), (2, TEXT))
    assert (nothing.failure, nothing.flac, nothing.seconds) == (REFUSED, b"", 0.0)
    assert "pronounces nothing" in nothing.detail
    assert long.failure == "longer than 30 s" and float(long.detail.split()[0]) > 30
    assert not fine.failure and fine.flac


@pytest.mark.parametrize(
    ("waveform", "failure", "detail"),
    [
        (np.zeros(100), "silence", "the loudest sample is 0"),
        (np.full(100, 5e-4), "silence", "the loudest sample is 0.0005"),
        (np.zeros(0), "unusable audio", "row 5 is empty"),
        (np.full(100, np.nan), "unusable audio", "row 5 holds 100 NaN"),
    ],
)
def test_audio_that_is_no_speech(monkeypatch, waveform, failure, detail):
    monkeypatch.setattr(speech_synthesis, "speak", lambda *_: (waveform, 22_050))
    [speech] = spoken(make_tts("espeak-ng", workers=1), (5, TEXT))
    assert speech.failure == failure and detail in speech.detail and not speech.flac


def test_model(vits):
    tts = make_tts(vits, seed=1)
    speeches = [spoken(tts, (row, text))[0] for row, text in enumerate([TEXT, LONGER] + 10 * [TEXT])]
    for speech, text in zip(speeches[:2], (TEXT, LONGER)):
        np.testing.assert_allclose(samples(speech), directly(vits, text, speech.manner), atol=1 / 2**15 + 1e-6)
    assert {speech.manner.voice for speech in speeches} == {"0", "1", "2"}
    assert len({speech.manner.speed for speech in speeches}) > 3
    assert all(0.8 <= speech.manner.speed <= 1.25 and speech.manner.pitch is None for speech in speeches)
    assert set(tts.versions) == {"torch", "transformers"}


def test_padding_of_a_batch_is_no_speech(vits):
    short, long = spoken(make_tts(vits, batch_size=2), (0, TEXT), (1, LONGER))
    assert short.manner == long.manner
    for speech, text in ((short, TEXT), (long, LONGER)):
        expected = directly(vits, text, speech.manner)
        assert len(samples(speech)) == len(expected)
        # The vocoder looks ahead a little: next to padding, the last frames differ.
        own = len(expected) - 10 * SAMPLES_PER_FRAME
        np.testing.assert_allclose(samples(speech)[:own], expected[:own], atol=1e-3)


def test_a_noisy_model_is_seeded_by_the_row(tmp_path):
    folder = make_vits(tmp_path, num_speakers=1)
    first, other = (spoken(make_tts(folder), (row, TEXT))[0] for row in (0, 1))
    tts = make_tts(folder)
    spoken(tts, (9, LONGER))
    assert spoken(tts, (0, TEXT))[0] == first
    assert other.flac != first.flac and other.manner.voice == first.manner.voice == ""
    assert spoken(make_tts(folder, seed=1), (0, TEXT))[0].flac != first.flac


def test_a_text_the_model_refuses_does_not_take_its_batch_along(vits, monkeypatch):
    forward = VitsModel.forward

    def refuse_z(self, input_ids, **kwargs):
        if (input_ids == VITS_LETTERS.index("z")).any():
            raise RuntimeError("this model cannot say z")
        return forward(self, input_ids, **kwargs)

    tts = make_tts(vits, batch_size=3)
    monkeypatch.setattr(VitsModel, "forward", refuse_z)
    good, bad, also_good = spoken(tts, (0, TEXT), (1, "name a zebra"), (2, LONGER))
    assert bad.failure == REFUSED and bad.detail == "this model cannot say z" and not bad.flac
    for speech, text in ((good, TEXT), (also_good, LONGER)):
        np.testing.assert_allclose(samples(speech), directly(vits, text, speech.manner), atol=1 / 2**15 + 1e-6)


def test_running_out_of_memory_is_no_property_of_a_text(vits, monkeypatch):
    tts = make_tts(vits)

    def forward(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VitsModel, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        spoken(tts, (0, TEXT))


def test_letters_that_a_model_passes_over(vits, tmp_path):
    tts = make_tts(vits)
    assert not tts.loses("What's the name, of Kate's dog?")
    assert tts.loses("name 3 rivers") and tts.loses("was heißt das")
    make_vits(tmp_path, letters=VITS_LETTERS + "3")
    assert not make_tts(str(tmp_path)).loses("name 3 rivers")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"phonemize": True}))
    assert not make_tts(str(tmp_path)).loses("was heißt das")  # spelt in phonemes first
    assert not make_tts("espeak-ng").loses("name 3 rivers")


def test_a_batch_needs_lengths(tmp_path, monkeypatch):
    folder = make_vits(tmp_path)
    tts = make_tts(folder, batch_size=2)
    forward = VitsModel.forward
    monkeypatch.setattr(VitsModel, "forward", lambda *args, **kwargs: forward(*args, **kwargs).to_tuple())
    assert not spoken(tts, (0, TEXT))[0].failure
    with pytest.raises(ValueError, match="does not report where the clips of a batch end.*--batch-size 1"):
        spoken(tts, (0, TEXT), (1, LONGER))


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="batch_size=2; espeak-ng speaks one text at a time"):
        make_tts("espeak-ng", batch_size=2)
    with pytest.raises(ValueError, match="workers=2; a model runs in one process"):
        make_tts(str(tmp_path), workers=2)
    with pytest.raises(ValueError, match="nothing cannot be loaded as a text-to-audio model"):
        make_tts(str(tmp_path / "nothing"))


def test_a_model_without_a_sampling_rate(backbone_folders):
    with pytest.raises(ValueError, match="does not say the sampling rate"):
        make_tts(backbone_folders[1])
