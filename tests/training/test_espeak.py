"""The espeak-ng binding: what its speech measures, that it is reproducible anywhere, and its errors."""

import hashlib
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from falcon3_audio.training.prepare import espeak
from falcon3_audio.training.prepare.espeak import speak, variants, voices


def digest(text="hello world", voice="en-us", speed=160, pitch=50):
    return hashlib.sha256(speak(text, voice, speed, pitch)[0].tobytes()).hexdigest()


def fundamental(waveform, rate):
    """Median over the loud frames of the strongest autocorrelation lag between 60 and 400 Hz, in Hz."""
    size = rate // 25
    frames = [waveform[start : start + size] for start in range(0, len(waveform) - size, size // 2)]
    loudest = max(np.mean(frame**2) for frame in frames)
    low, high = rate // 400, rate // 60
    lags = [
        low + np.correlate(frame, frame, "full")[size - 1 :][low:high].argmax()
        for frame in frames
        if np.mean(frame**2) > 0.2 * loudest
    ]
    return rate / np.median(lags)


def test_waveform():
    waveform, rate = speak("one two three")
    assert waveform.dtype == np.float32 and waveform.ndim == 1 and rate == 22050
    assert 0.6 < len(waveform) / rate < 2.5
    assert 0.1 < np.abs(waveform).max() <= 1


def test_speed_is_a_rate():
    text = "the dog and the cat and the bird and the horse and the sheep and the cow"
    slow, quick = (len(speak(text, speed=speed)[0]) for speed in (120, 240))
    assert slow / quick == pytest.approx(2, rel=0.2)


def test_pitch_and_gender():
    text = "the yellow horse is number nine"
    low, middle, high = (fundamental(*speak(text, "en-us+m3", pitch=pitch)) for pitch in (20, 50, 80))
    assert low < 0.9 * middle < 0.8 * high
    assert 80 < middle < 130 < 165 < fundamental(*speak(text, "en-us+f3")) < 260


# f3 and whisper contain noise, en-gb is the voice that espeak-ng itself calls "en".
@pytest.mark.parametrize("voice", ["en-us", "en-us+f3", "en-us+whisper", "en-gb+klatt"])
def test_same_samples_whatever_was_spoken_before(voice):
    first = digest(voice=voice)
    speak("Something else, quickly, in another voice.", "en-gb+f1", speed=230, pitch=80)
    assert digest(voice=voice) == first
    assert digest("hello word", voice) != first


def test_same_samples_in_a_new_process():
    code = "import hashlib, espeak; print(hashlib.sha256(espeak.speak('hello world', 'en-us+f3')[0].tobytes()).hexdigest())"
    folder = Path(espeak.__file__).parent
    fresh = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == digest(voice="en-us+f3")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_forked_workers_and_threads():
    expected = digest()
    with ThreadPoolExecutor(4) as threads:
        spoken = [threads.submit(digest) for _ in range(20)]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as processes:
            assert set(processes.map(digest, ["hello world"] * 6)) == {expected}
        assert {future.result() for future in spoken} == {expected}


def test_voices():
    assert {"en-gb", "en-us", "en-gb-scotland"} <= set(voices()) < set(voices(""))
    assert voices("de") == ["de"] and voices("tlh-nowhere") == []
    genders = variants()
    assert genders["f3"] == "female" and genders["m3"] == "male" and "en-us" not in genders


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": " "}, "at least one word"),
        ({"text": "..."}, "pronounces nothing"),
        ({"text": "a\0b"}, "no NUL"),
        ({"voice": "en-uz"}, "no voice 'en-uz'.*en-us"),
        ({"voice": "en-us+f33"}, "no variant 'f33'.*f3"),
        ({"voice": "en-us+"}, "no variant ''"),
        ({"speed": 79}, "speed=79; expected 80 to 450"),
        ({"speed": 451}, "speed=451; expected 80 to 450"),
        ({"pitch": -1}, "pitch=-1; expected 0 to 99"),
        ({"pitch": 100}, "pitch=100; expected 0 to 99"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        speak(**{"text": "hello", **arguments})
