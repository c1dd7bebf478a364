"""Audio from any source becomes the samples that transformers reads from it; invalid input is an error."""

import base64
import http.server
import io
import logging
import math
import pathlib
import struct
import threading
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
import torch
from tiny import tone
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.audio_utils import load_audio as transformers_load_audio

from falcon3_audio.processing import audio_inputs_falcon3_audio as audio_inputs
from falcon3_audio.processing import load_audio


# A length that no rate divides.
STEREO = np.stack([tone(0.5, 440, 44_100), tone(0.5, 997, 44_100)], axis=1)[:-7]
MONO = tone(0.25)


def encode(samples, rate=16_000, format="wav", **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **options)
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(data).decode()


def expected(data: bytes) -> np.ndarray:
    """The samples that transformers reads from an encoded file."""
    return transformers_load_audio(data_url(data), sampling_rate=16_000, backend="soundfile")


@pytest.fixture
def server(monkeypatch):
    """Serves `server.files` on 127.0.0.1; everything else is a 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.agents.append(self.headers["User-Agent"])
            data = self.server.files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"") + self.server.missing))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *args):
            pass

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.agents, server.address = {}, [], f"http://127.0.0.1:{server.server_port}"
    server.missing = 0  # bytes of an answer that are announced and not sent
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_constants_are_whispers():
    extractor, encoder = WhisperFeatureExtractor(), WhisperConfig()
    assert extractor.sampling_rate == audio_inputs.SAMPLING_RATE
    assert extractor.hop_length == audio_inputs.HOP_LENGTH
    assert extractor.chunk_length == audio_inputs.WINDOW_SECONDS
    assert extractor.nb_max_frames == audio_inputs.WINDOW_SECONDS * audio_inputs.FRAMES_PER_SECOND
    assert encoder.max_source_positions == audio_inputs.WINDOW_SECONDS * audio_inputs.POSITIONS_PER_SECOND
    assert audio_inputs.TOKENS_PER_SECOND == 25


# Files, in every format, rate and wrapping.


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_files_give_the_samples_of_transformers(tmp_path, format, rate):
    path = tmp_path / f"clip.{format}"
    soundfile.write(path, STEREO, rate)
    samples = load_audio(str(path))
    reference = transformers_load_audio(str(path), sampling_rate=16_000, backend="soundfile")
    assert samples.dtype == np.float32 and samples.shape == reference.shape
    # The memory address of a buffer changes how libmpg123 rounds.
    np.testing.assert_allclose(samples, reference, rtol=0, atol=1e-6 if format == "mp3" else 0)
    assert np.abs(samples).max() > 0.1


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_encodings(subtype):
    data = encode(STEREO, 22_050, subtype=subtype)
    np.testing.assert_array_equal(load_audio(data), expected(data))


SOURCES = {
    "str": str,
    "pathlib": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file object": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "data URL": lambda path: data_url(path.read_bytes()),
    "percent-encoded data URL": lambda path: "data:audio/wav;base64," + quote(base64.b64encode(path.read_bytes())),
    "URL-safe data URL": lambda path: " data:;base64," + base64.urlsafe_b64encode(path.read_bytes()).decode(),
    "file URL": lambda path: path.as_uri(),
    "file URL in capitals": lambda path: path.as_uri().replace("file:", "FILE:"),
    "file URL of this machine": lambda path: path.as_uri().replace("file://", "file://localhost"),
    "file URL as a path": lambda path: type(path)(path.as_uri()),
    "dict with path": lambda path: {"path": str(path), "bytes": None},
    "dict with bytes": lambda path: {"path": "elsewhere/clip.wav", "bytes": path.read_bytes()},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_way_to_hand_over_a_file(tmp_path, kind):
    path = tmp_path / "ä clip.wav"
    path.write_bytes(encode(STEREO, 44_100))
    np.testing.assert_array_equal(load_audio(SOURCES[kind](path)), expected(path.read_bytes()))


def test_http_url(server):
    server.files["/clip.flac"] = encode(STEREO, 44_100, "flac")
    np.testing.assert_array_equal(load_audio(server.address + "/clip.flac"), expected(encode(STEREO, 44_100, "flac")))
    assert server.agents == ["falcon3-audio"]  # many servers refuse urllib's user agent


def test_url_that_is_not_there(server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=r"clip 7.*/missing\.wav.*404"):
        load_audio(server.address + "/missing.wav", name="clip 7")


@pytest.mark.parametrize("wrap", ["path", "data URL"])
def test_a_file_may_be_given_its_own_rate_or_the_models(tmp_path, wrap):
    path = tmp_path / "clip.wav"
    path.write_bytes(encode(STEREO, 44_100))
    source = str(path) if wrap == "path" else data_url(path.read_bytes())
    for rate in (44_100, 16_000):
        np.testing.assert_array_equal(load_audio(source, rate), expected(path.read_bytes()))


def test_header_of_a_recording_that_was_piped():
    data = encode(MONO)
    start = data.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFF000):
        piped = data[:start] + struct.pack("<I", unknown) + data[start + 4 :]
        np.testing.assert_array_equal(load_audio(piped), expected(data))


def test_wav_with_other_chunks_around_the_sound():
    data = encode(MONO)
    start = data.index(b"data")
    odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"  # chunks of odd length are padded
    np.testing.assert_array_equal(load_audio(data[:start] + odd + data[start:] + odd), expected(data))


# Samples in memory.

HAND_MADE = {
    "int16": (np.array([-32768, 0, 16384, 32767], np.int16), [-1, 0, 0.5, 32767 / 32768]),
    "int32": (np.array([-(2**31), 0, 2**30, 2**29], np.int32), [-1, 0, 0.5, 0.25]),
    "uint8": (np.array([0, 128, 192, 255], np.uint8), [-1, 0, 0.5, 127 / 128]),
    "float16": (np.array([-1, 0, 0.5, 0.25], np.float16), [-1, 0, 0.5, 0.25]),
    "float32": (np.array([-1, 0, 0.5, 0.1], np.float32), [-1, 0, 0.5, 0.1]),
    "float64": (np.array([-1, 0, 0.5, 0.1]), [-1, 0, 0.5, 0.1]),
    "big endian float": (np.array([-1, 0, 0.5, 0.1], ">f4"), [-1, 0, 0.5, 0.1]),
    "reversed view": (np.array([0.1, 0.5, 0, -1])[::-1], [-1, 0, 0.5, 0.1]),
    "list": ([-1.0, 0.0, 0.5, 0.1], [-1, 0, 0.5, 0.1]),
    "tuple": ((-1.0, 0.0, 0.5, 0.1), [-1, 0, 0.5, 0.1]),
    "torch int16": (torch.tensor([-32768, 0, 16384, 32767], dtype=torch.int16), [-1, 0, 0.5, 32767 / 32768]),
    "torch uint8": (torch.tensor([0, 128, 192, 255], dtype=torch.uint8), [-1, 0, 0.5, 127 / 128]),
    "torch bfloat16": (torch.tensor([-1, 0, 0.5, 0.25], dtype=torch.bfloat16), [-1, 0, 0.5, 0.25]),
    "torch with grad": (torch.tensor([-1, 0, 0.5, 0.1], requires_grad=True), [-1, 0, 0.5, 0.1]),
    "channels first": (np.array([[1, 0, 0.5], [0, 0.5, 0.5]]), [0.5, 0.25, 0.5]),
    "channels last": (np.array([[1, 0], [0, 0.5], [0.5, 0.5]]), [0.5, 0.25, 0.5]),
    "channels as lists": ([[1.0, 0.0, 0.5], [0.0, 0.5, 0.5]], [0.5, 0.25, 0.5]),
    "stereo int16": (np.array([[16384, 0], [0, 16384], [-16384, -16384]], np.int16), [0.25, 0.25, -0.5]),
    "torch channels": (torch.tensor([[1, 0, 0.5], [0, 0.5, 0.5]]), [0.5, 0.25, 0.5]),
    "one channel first": (np.array([[1, 0.25, 0.5]]), [1, 0.25, 0.5]),
    "one channel last": (np.array([[1], [0.25], [0.5]]), [1, 0.25, 0.5]),
    "one sample": (np.array([0.5]), [0.5]),
}


@pytest.mark.parametrize("kind", HAND_MADE)
def test_samples_by_hand(kind):
    source, wanted = HAND_MADE[kind]
    samples = load_audio(source, 16_000)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, np.array(wanted, np.float32))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_arrays_are_resampled_as_files_are(rate):
    clip = tone(0.3, rate=rate)[:-7]
    samples = load_audio(clip, rate)
    np.testing.assert_array_equal(samples, expected(encode(clip, rate, subtype="FLOAT")))
    assert len(samples) == math.ceil(len(clip) * 16_000 / rate)
    np.testing.assert_array_equal(load_audio(torch.from_numpy(clip), np.int64(rate)), samples)


@pytest.mark.parametrize("key", ["array", "raw"])
def test_dicts_of_datasets_and_pipelines(key):
    clip = tone(0.3, rate=44_100)
    wanted = load_audio(clip, 44_100)
    for samples in (clip, clip.tolist(), torch.from_numpy(clip)):
        source = {key: samples, "sampling_rate": 44_100, "path": None}
        np.testing.assert_allclose(load_audio(source), wanted, atol=1e-6)
        np.testing.assert_allclose(load_audio(source, 16_000), wanted, atol=1e-6)


def test_samples_with_their_rate():
    """In the order of gradio and scipy, and in that of torchaudio and soundfile."""
    whole = (STEREO * 32_767).astype(np.int16)
    wanted = load_audio(whole, 44_100)
    for source in ((44_100, whole), (whole, 44_100), (torch.from_numpy(whole), np.int64(44_100)), [44_100, whole]):
        np.testing.assert_array_equal(load_audio(source), wanted)
    np.testing.assert_array_equal(load_audio((MONO.tolist(), 8_000)), load_audio(MONO, 8_000))
    for source in ((whole, 44_100.0), [np.float64(44_100), whole], {"array": whole, "sampling_rate": 44_100.0}):
        np.testing.assert_array_equal(load_audio(source), wanted)
    with pytest.raises(ValueError, match="clip 7.*44100 Hz.*sampling_rate=8000"):
        load_audio((44_100, whole), 8_000, "clip 7")
    for rate in (torch.tensor(44_100), np.array(44_100), torch.tensor(44_100.0), np.array(44_100, np.int32)):
        for source in ((whole, rate), (rate, whole), [torch.from_numpy(whole), rate], {"array": (whole, rate)}):
            np.testing.assert_array_equal(load_audio(source), wanted)


WAVEFORM = torch.from_numpy(MONO)[None]
# What data sets and other libraries put next to samples, or next to a file.
NOT_A_PAIR = {
    "torchaudio": (WAVEFORM, 8_000, "SO IT GOES", 1, 2, 3),
    "rate as text": (MONO, "8000"),
    "no rate": (MONO, None),
    "true as a rate": (MONO, True),
    "rate and a name": (MONO, 8_000, "clip.wav"),
    "file": ("clip.wav", 8_000),
    "path": (pathlib.Path("clip.wav"), torch.tensor(8_000)),
    "bytes": (encode(MONO), 8_000),
    "file object": (io.BytesIO(encode(MONO)), 8_000),
    "dict": ({"array": MONO}, 8_000),
    "list with None": [0.5, None],
}


@pytest.mark.parametrize("kind", NOT_A_PAIR)
def test_what_is_no_pair_of_samples_and_rate_is_named(kind):
    source = NOT_A_PAIR[kind]
    parts = ", ".join(type(part).__name__ for part in source)
    with pytest.raises(ValueError, match=rf"clip 7 is the {type(source).__name__} \({parts}\); .*\(samples, rate\)"):
        load_audio(source, None, "clip 7")


@pytest.mark.parametrize("source", [MONO, MONO.tolist(), torch.from_numpy(MONO), {"array": MONO}, [MONO, MONO]])
def test_samples_without_a_rate_next_to_what_is_not_read(source):
    for rate in (None, 8_000):
        with pytest.raises(ValueError, match=r"clip 7: the rate .* not under 'sampling_rate'; there is \['sr'\]"):
            load_audio(source, rate, "clip 7", unread=["sr"])
    for known in ((MONO, 8_000), {"array": MONO, "sampling_rate": 8_000}, encode(MONO, 8_000, subtype="FLOAT")):
        np.testing.assert_array_equal(load_audio(known, unread=["sr"]), load_audio(MONO, 8_000))


def test_base64_in_lines():
    data = encode(MONO)
    url = "data:audio/wav;base64," + base64.encodebytes(data).decode()
    assert url.count("\n") > 10
    np.testing.assert_array_equal(load_audio(url), expected(data))
    np.testing.assert_array_equal(load_audio(url.replace("\n", "\r\n")), expected(data))


def test_a_file_object_can_be_read_again(tmp_path):
    (tmp_path / "clip.wav").write_bytes(encode(MONO))
    with open(tmp_path / "clip.wav", "rb") as file:
        for source in (file, io.BytesIO(encode(MONO))):
            for _ in range(2):
                np.testing.assert_array_equal(load_audio(source), expected(encode(MONO)))


def test_a_reader_that_cannot_go_back():
    class Reader:
        def read(self):
            return encode(MONO)

    np.testing.assert_array_equal(load_audio(Reader()), expected(encode(MONO)))


def test_the_scheme_of_a_url_is_in_either_case(server):
    data = encode(MONO)
    url = "DATA:audio/wav;base64," + base64.b64encode(data).decode()
    np.testing.assert_array_equal(load_audio(url), expected(data))
    server.files["/clip.wav"] = data
    np.testing.assert_array_equal(load_audio(server.address.replace("http", "HTTP") + "/clip.wav"), expected(data))


def test_samples_in_the_other_order_of_bytes():
    """As scipy and memory maps read them from RIFX and AU files."""
    for kind in ("int16", "int32", "float32"):
        samples = (MONO * (32_767 if kind == "int16" else 2**31 - 1000 if kind == "int32" else 1)).astype(kind)
        swapped = samples.astype(samples.dtype.newbyteorder())
        np.testing.assert_array_equal(load_audio(swapped, 16_000), load_audio(samples, 16_000))


def test_a_decoder_of_torchcodec():
    class Decoder:
        def get_all_samples(self):
            return type("AudioSamples", (), {"data": torch.from_numpy(STEREO.T.copy()), "sample_rate": 44_100})

    np.testing.assert_array_equal(load_audio(Decoder()), expected(encode(STEREO, 44_100, subtype="FLOAT")))


def test_a_file_inside_of_a_dict_keeps_its_rate():
    data = encode(STEREO, 44_100)
    np.testing.assert_array_equal(load_audio({"array": data}), expected(data))


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_a_file_read_into_a_uint8_array_is_not_taken_for_samples(format, make):
    data = encode(STEREO, 44_100, format)
    try:
        samples = load_audio(make(np.frombuffer(data, np.uint8)), 16_000)
    except ValueError:
        return
    np.testing.assert_array_equal(samples, expected(data))


def test_samples_of_unknown_rate_warn(caplog):
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(load_audio(MONO, name="a clip without a rate"), MONO)
    assert "a clip without a rate" in caplog.text and "sampling_rate" in caplog.text


def test_the_callers_array_is_neither_changed_nor_shared():
    clip = MONO.copy()
    load_audio(clip, 16_000)[:] = 0
    np.testing.assert_array_equal(clip, MONO)


# Errors: each names the clip and what to do.

BAD = {
    "no samples": (np.zeros(0, np.float32), 16_000, "is empty"),
    "empty list": ([], 16_000, "is empty"),
    "no samples of two channels": (np.zeros((2, 0), np.float32), 16_000, "is empty"),
    "no bytes": (b"", None, "is empty"),
    "file without samples": (encode(np.zeros((0, 1))), None, "is empty"),
    "file object at its end": (io.BytesIO(), None, "is empty"),
    "NaN": (np.array([0.1, np.nan]), 16_000, "1 NaN or infinite samples; clean"),
    "infinity": (np.array([np.inf, 0.1, -np.inf]), 16_000, "2 NaN or infinite samples; clean"),
    "file with NaN": (encode(np.array([0.1, np.nan]), subtype="FLOAT"), None, "1 NaN or infinite"),
    "16-bit range": (MONO * 32_768, 16_000, "float samples lie in .*32768"),
    "file in 16-bit range": (encode(MONO * 32_768, subtype="FLOAT"), None, "float samples lie in .*32768"),
    "int64": (np.array([1, 2, 3]), 16_000, "int64.*expected float .*int16"),
    "list of integers": ([1, 2, 3], 16_000, "int64.*expected float"),
    "bool": (np.array([True, False]), 16_000, "bool.*expected float"),
    "complex": (np.array([1j, 0.5]), 16_000, "complex128.*expected float"),
    "strings": (["a.wav", "b.wav"], 16_000, "expected float"),
    "mel spectrogram": (np.zeros((80, 3000), np.float32), 16_000, "too many channels.*not a spectrogram"),
    "turned spectrogram": (np.zeros((3000, 128), np.float32), 16_000, "too many channels.*not a spectrogram"),
    "three dimensions": (np.zeros((1, 80, 3000), np.float32), 16_000, r"\(1, 80, 3000\).*expected \(samples,\)"),
    "two clips": ([MONO, MONO[:-1]], 16_000, "unequal parts; pass one clip"),
    "no audio": (b"This is a shopping list.\n" * 20, None, "cannot be decoded.*damaged or not audio"),
    "middle of a file": (encode(MONO)[100:], None, "cannot be decoded"),
    "no file": ("nowhere/clip.wav", None, "no file 'nowhere/clip.wav'"),
    "folder": (".", None, "no file"),
    "no file at a URL": ("file:///nowhere/clip.wav", None, "could not read 'file:///nowhere/clip.wav'.*No such file"),
    "data URL without base64": ("data:audio/wav,AAAA", None, "must be data:TYPE;base64,DATA, got 'data:audio/wav'"),
    "no base64 in a data URL": ("data:audio/wav;base64,A!", None, "is broken base64.*begins with 'A!'"),
    "base64": (base64.b64encode(encode(MONO)).decode(), None, "no file.*`data:` URL"),
    "broken data URL": ("data:audio/wav;base64,AAAA", None, "data:audio/wav"),
    "unknown dict": ({"samples": MONO}, 16_000, "'samples'.*expected 'array'"),
    "contradiction with a file": (encode(MONO), 44_100, "16000 Hz.*44100.*Leave it out"),
    "contradiction with a dict": ({"array": MONO, "sampling_rate": 8_000}, 44_100, "8000 Hz.*44100"),
    "rate under another name": (
        {"array": MONO, "sample_rate": 8_000},
        None,
        "not under 'sampling_rate'.*'sample_rate'",
    ),
    "rate under a short name": ({"raw": MONO, "sr": 8_000, "path": None}, 16_000, "not under 'sampling_rate'.*'sr'"),
    "rate 0 in a dict": ({"array": MONO, "sampling_rate": 0}, None, "whole number of Hz"),
    "rate 0": (MONO, 0, "whole number of Hz.*got 0"),
    "negative rate": (MONO, -16_000, "whole number of Hz.*got -16000"),
    "fractional rate": (MONO, 16_000.5, "whole number of Hz"),
    "fractional rate beside samples": ((MONO, 16_000.5), None, "whole number of Hz.*got 16000.5"),
    "huge rate": (MONO, 10**9, "whole number of Hz from 1000 to 768000"),
    "rate in kHz": (MONO, 16, "whole number of Hz from 1000"),
    "rate as text": (MONO, "16000", "whole number of Hz"),
    "true as a rate": (MONO, True, "whole number of Hz"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_audio_is_named(kind):
    source, rate, message = BAD[kind]
    with pytest.raises(ValueError, match=f"(?s)clip 7.*{message}"):
        load_audio(source, rate, "clip 7")


@pytest.mark.parametrize("source", [None, 3, 0.5, np.float32(0.5), object(), (x for x in [0.5])])
def test_things_that_are_no_audio(source):
    with pytest.raises(TypeError, match=f"clip 7 is a {type(source).__name__}; expected a path"):
        load_audio(source, 16_000, "clip 7")


def test_a_text_file_object_is_named(tmp_path):
    with pytest.raises((TypeError, ValueError), match="clip 7"):
        load_audio(io.StringIO("RIFF"), None, "clip 7")


@pytest.mark.parametrize("content", [b"", b"This is a shopping list.\n" * 20])
def test_bad_files_are_named_by_path(tmp_path, content):
    path = tmp_path / "shopping.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip 7 .*shopping\.wav.* (is empty|cannot be decoded)"):
        load_audio(path, name="clip 7")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("format", ["wav", "wavex", "flac", "mp3", "ogg", "aiff"])
def test_files_that_were_cut_off(format, share):
    data = encode(tone(12.0), format=format)
    with pytest.raises(ValueError, match="clip 7 .*(truncated|cannot be decoded|is empty)"):
        load_audio(data[: int(share * len(data))], name="clip 7")


def test_a_wav_file_that_was_cut_off_behind_an_odd_chunk():
    data = encode(MONO)
    start = data.index(b"data")
    odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
    with pytest.raises(ValueError, match="clip 7.*truncated"):
        load_audio((data[:start] + odd + data[start:])[:-1000], name="clip 7")


def test_urls_that_were_cut_off(server):
    data = encode(MONO)
    server.files["/clip.wav"] = data[: len(data) // 2]
    for url in (data_url(data[: len(data) // 2]), server.address + "/clip.wav"):
        with pytest.raises(ValueError, match="clip 7.*truncated"):
            load_audio(url, name="clip 7")
    server.missing = 1
    with pytest.raises(ValueError, match="clip 7: could not read 'http.*clip.wav': IncompleteRead"):
        load_audio(server.address + "/clip.wav", name="clip 7")
