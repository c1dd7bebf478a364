"""Base64 and `data:` URLs in the forms in which programs write them; what is broken is named."""

import base64
from urllib.parse import quote

import numpy as np
import pytest

from falcon3_audio.processing.data_urls_falcon3_audio import read_base64, read_data_url


# Every byte, in lengths with all three paddings; both letters in which the alphabets differ occur.
TEXTS = [bytes(range(256))[::-1] * 3 + bytes(rest) for rest in range(3)]
ENCODINGS = {
    "standard": base64.b64encode,
    "URL-safe": base64.urlsafe_b64encode,
    "no padding": lambda data: base64.b64encode(data).rstrip(b"="),
    "URL-safe without padding": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "lines": base64.encodebytes,
    "lines of Windows": lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n"),
    "spaces around": lambda data: b" \t" + base64.b64encode(data) + b"\n",
}


@pytest.mark.parametrize("data", TEXTS, ids=len)
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_what_was_encoded_comes_back(data, encode):
    text = encode(data)
    assert read_base64(text, "clip 7") == data
    for head in ("data:audio/wav;base64,", "data:;base64,", "data:audio/webm;codecs=opus; BASE64,"):
        for body in (text.decode(), quote(text), quote(text, safe="")):
            assert read_data_url(head + body, "clip 7") == data


def test_a_long_text_is_read_whole():
    data = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8).tobytes()
    assert read_base64(base64.b64encode(data), "clip 7") == data


@pytest.mark.parametrize(
    "text", [b"a.wav", b"base64,AAAA", b"b'UklGRg=='", b"AAAA!", b"AAAAA", b"AA==AAAA", b"%41%41", "ÄÄ".encode()]
)
def test_what_is_no_base64_is_named_and_shown(text):
    with pytest.raises(ValueError, match="^clip 7 is broken base64: .* Expected the bytes of an audio file") as error:
        read_base64(b" " + text, "clip 7")
    assert f"it begins with {text.decode()!r}" in str(error.value)


@pytest.mark.parametrize(
    "url", ["data:audio/wav,AAAA", "data:,", "data:", "data:base64,AA==", "data:audio/wav;base64"]
)
def test_data_urls_without_base64_are_named(url):
    with pytest.raises(ValueError, match="clip 7: a data: URL must be data:TYPE;base64,DATA, got ") as error:
        read_data_url(url, "clip 7")
    assert repr(url.partition(",")[0]) in str(error.value)


def test_half_a_character_is_no_base64():
    with pytest.raises(ValueError, match="clip 7 is broken base64"):
        read_data_url("data:audio/wav;base64,\ud800", "clip 7")
