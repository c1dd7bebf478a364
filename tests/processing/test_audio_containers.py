"""Containers that FFmpeg decodes are whole or an error, wherever they are cut and whatever follows them."""

import struct

import numpy as np
import pytest
from ffmpeg_files import M4A, RATE, STEREO, with_ffmpeg
from sound_files import LONG, SHORT, TAG, encode, plain, put, streamed_wav
from sound_files import RATE as RATE_OF_WAV
from tiny import tone

from falcon3_audio.processing import load_audio
from falcon3_audio.processing.announced_length import announced_length
from falcon3_audio.processing.audio_containers_falcon3_audio import end_of_first
from falcon3_audio.processing.audio_files_falcon3_audio import decode_file


FAST = {"movflags": "faststart"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}
# Container and codec, and FFmpeg's options.
FILES = {
    "m4a": ("ipod", "aac", None),
    "mp4 with its index first": ("mp4", "aac", FAST),
    "mp4 in fragments": ("mp4", "aac", FRAGMENTED),
    "mov": ("mov", "pcm_s16le", FAST),
    "3gp": ("3gp", "aac", None),
    "webm": ("webm", "libopus", None),
    "webm in parts": ("webm", "libopus", {"live": "1"}),
    "mkv": ("matroska", "libmp3lame", None),
    "avi": ("avi", "pcm_s16le", None),
    "avi with mp3": ("avi", "libmp3lame", None),
    "flv": ("flv", "aac", None),
    "flv with mp3": ("flv", "libmp3lame", None),
    "wma": ("asf", "wmav2", None),
    "ts": ("mpegts", "libmp3lame", None),
    "m2ts": ("mpegts", "aac", {"mpegts_m2ts_mode": "1"}),
}
JOINED_AS_ERRORS = ("m4a", "mp4 with its index first", "mp4 in fragments", "mov", "3gp", "flv", "flv with mp3", "wma")
DAMAGED = "(?s)clip 7 (is truncated|cannot be decoded)"


def make(kind: str, seconds: float = 2.0) -> bytes:
    container, codec, options = FILES[kind]
    rate = 48_000 if codec == "libopus" else RATE
    samples = np.stack([tone(seconds, 440, rate), tone(seconds, 997, rate)])
    return with_ffmpeg(container, codec, samples, rate, 128_000, options)


def seconds_of(data: bytes) -> float:
    samples, rate = decode_file(data, "clip 7")
    return len(samples) / rate


@pytest.fixture(scope="module")
def files():
    return {kind: make(kind) for kind in FILES}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("seconds", [0.3, 0.6, 2.0])
def test_a_file_is_whole_and_a_cut_one_is_an_error(kind, seconds):
    """Short ones too, of which less is missing than video can be longer than audio."""
    data = make(kind, seconds)
    assert seconds_of(data) == pytest.approx(seconds, abs=0.1)
    assert seconds_of(data + TAG) == pytest.approx(seconds, abs=0.1)
    for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        end = round(share * len(data))
        end += end % (192 if kind == "m2ts" else 188) == 0  # not between two packets
        with pytest.raises(ValueError, match=DAMAGED):
            decode_file(data[:end], "clip 7")


@pytest.mark.parametrize("kind", FILES)
def test_joined_files_are_heard_or_an_error(kind, files):
    data = files[kind]
    if kind in JOINED_AS_ERRORS:
        with pytest.raises(ValueError, match="clip 7 (holds several files|is truncated: it announces)"):
            decode_file(data + data, "clip 7")
    else:
        assert seconds_of(data + data) == pytest.approx(2 * seconds_of(data), abs=0.1)


# A packet of m2ts starts with 4 bytes of any value.
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "m2ts"])
@pytest.mark.parametrize("stray", [b"\n", b"\r\n", bytes(3), b"abc"])
def test_stray_bytes_after_a_container_are_no_truncation(kind, stray, files):
    assert seconds_of(files[kind] + stray) == seconds_of(files[kind])


def test_what_follows_packets_is_counted_without_them(files):
    for kind in ("ts", "m2ts"):
        with pytest.raises(ValueError, match="its last 90 bytes are no complete part"):
            decode_file(files[kind] + b"U" * 90, "clip 7")
        with pytest.raises(ValueError, match="its last 100 bytes are no complete part"):
            decode_file(files[kind][: (100 - (192 if kind == "m2ts" else 188))], "clip 7")


@pytest.mark.parametrize("kind", [kind for kind in FILES if "ts" not in kind.split()[0]])
def test_other_files_after_a_container_are_an_error_and_padding_is_not(kind, files):
    data = files[kind]
    assert seconds_of(data + bytes(3000)) == seconds_of(data)
    for more in (encode(SHORT, "WAV"), encode(SHORT, "MP3"), encode(SHORT, "FLAC"), M4A):
        with pytest.raises(ValueError, match="clip 7 (continues|is truncated|holds several|cannot be decoded)"):
            decode_file(data + more, "clip 7")


def test_webm_as_browsers_record_it():
    """The sizes of all but the blocks are unknown: the parts in them are walked."""
    data = make("webm in parts")
    cluster = data.index(b"\x1f\x43\xb6\x75")
    while cluster >= 0:
        length = 9 - data[cluster + 4].bit_length()
        data = put(data, cluster + 4, ((2 << 7 * length) - 1).to_bytes(length, "big"))
        cluster = data.find(b"\x1f\x43\xb6\x75", cluster + 4)
    assert seconds_of(data) == pytest.approx(2.0, abs=0.1)
    for end in (-1, -20, len(data) // 2):
        with pytest.raises(ValueError, match="clip 7 is truncated"):
            decode_file(data[:end], "clip 7")


def test_avi_from_a_stream():
    data = make("avi")
    for unknown in (0, 0xFFFFFFFF):
        assert seconds_of(put(data, 4, struct.pack("<I", unknown))) == seconds_of(data)


@pytest.mark.parametrize("codec", ["ac3", "eac3", "aac"])
def test_a_raw_stream_that_was_cut_within_a_frame(codec):
    data = with_ffmpeg("adts" if codec == "aac" else codec, codec, bit_rate=128_000)
    assert seconds_of(data) == pytest.approx(2.0, abs=0.1)
    for end in (10_020, 16_500, 24_000, -300, -1):
        with pytest.raises(ValueError, match=DAMAGED):
            decode_file(data[:end], "clip 7")


@pytest.mark.parametrize(
    ("format", "options"),
    [("WAV", {}), ("WAV", {"endian": "BIG"}), ("WAVEX", {}), ("WAV", {"subtype": "ULAW"}), ("RF64", {}), ("W64", {})]
    + [("AU", {}), ("AU", {"endian": "LITTLE"}), ("AIFF", {}), ("CAF", {})],
)
def test_a_size_of_0_before_audio_means_an_unknown_one(format, options):
    data = encode(LONG, format, **options)
    size = {"AU": 8, "RF64": 28, "W64": 16}.get(format)
    if size is None:
        title = b"SSND" if format == "AIFF" else b"data"
        size = data.index(title) + 4
    width = 8 if format in ("RF64", "W64", "CAF") else 4
    for unknown in (0, 8) if format == "AIFF" else (0, 2**64 - 1) if format == "CAF" else (0,):
        streamed = put(data, size, unknown.to_bytes(width, "big"))
        np.testing.assert_array_equal(decode_file(streamed, "clip 7")[0], plain(data))


@pytest.mark.parametrize("format", ["WAV", "AIFF", "CAF"])
@pytest.mark.parametrize("titles", [[b"LIST"], [b"LIST", b"cue "], [b"ANNO", b"INST"], [b"free", b"info"]])
def test_chunks_after_audio_of_size_0_are_no_samples(format, titles):
    data = encode(LONG, format)
    size = data.index(b"SSND" if format == "AIFF" else b"data") + 4
    width, order = 8 if format == "CAF" else 4, "little" if format == "WAV" else "big"
    chunks = b"".join(title + (26).to_bytes(width, order) + b"INFOISFT" + bytes(18) for title in titles)
    streamed = put(data, size, bytes(width)) + chunks
    np.testing.assert_array_equal(decode_file(streamed, "clip 7")[0], plain(data))


@pytest.mark.parametrize("size", [b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 7 + b"\xff"])
def test_a_chunk_before_the_audio_that_is_larger_than_its_file(size):
    with pytest.raises(ValueError, match="clip 7"):
        load_audio(b"caff\0\1\0\0desc" + size + b"abcd" * 4, name="clip 7")


@pytest.mark.parametrize("more", [b"\x80\x80", b"\x40\x40\x80", b"\x20\x40\x40\x80"])
def test_parts_that_matroska_does_not_have_are_not_walked(more):
    reads = []

    class Data(bytes):
        def __getitem__(self, key):
            reads.append(key)
            return super().__getitem__(key)

    assert end_of_first(Data(b"\x1aE\xdf\xa3\x80" + more * 1000)) == 5 + 1000 * len(more)
    assert len(reads) < 20


def test_silence_of_ulaw_after_a_size_of_0_is_heard():
    """Its bytes are 0xFF, which after other audio are padding."""
    data = encode(0 * SHORT, "WAV", subtype="ULAW")
    start = data.index(b"data") + 8
    assert not data[start:].strip(b"\xff")
    np.testing.assert_array_equal(decode_file(put(data, start - 4, bytes(4)), "clip 7")[0], plain(data))


def test_silence_after_a_size_of_0_is_heard():
    np.testing.assert_array_equal(decode_file(streamed_wav(0 * SHORT, 0), "clip 7")[0], 0 * SHORT[:, None])


def test_a_wav_without_audio_stays_empty():
    empty = encode(SHORT[:0], "WAV")
    for data in (
        empty,
        empty + b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + bytes(18),
        empty + TAG,
        empty + b"abc",
    ):
        with pytest.raises(ValueError, match="clip 7 is empty: 0 samples"):
            load_audio(data, name="clip 7")


def test_a_header_of_a_stream_announces_no_length(tmp_path):
    for size, frames in ((0, None), (len(LONG) * 2, len(LONG))):
        (tmp_path / "clip.wav").write_bytes(streamed_wav(LONG, size))
        assert announced_length(str(tmp_path / "clip.wav")) == (frames, RATE_OF_WAV, 1)


OF_SOUNDFILE = ("WAV", "RF64", "NIST", "MP3", "FLAC", "OGG", "AIFF", "CAF")
RAW = {"aac": "adts", "mp2": "mp2", "ac3": "ac3", "eac3": "eac3"}


@pytest.fixture(scope="module")
def kinds(files):
    amr = with_ffmpeg("amr", "libopencore_amrnb", tone(1.0, 440, 8_000)[None], 8_000)
    return {
        **{format: encode(STEREO.T, format, RATE) for format in OF_SOUNDFILE},
        **files,
        **{codec: with_ffmpeg(container, codec) for codec, container in RAW.items()},
        "amr": amr,
        "short mp3": encode(SHORT, "MP3"),
    }


@pytest.mark.parametrize("first", [*OF_SOUNDFILE, *FILES, *RAW, "amr", "short mp3"])
def test_any_two_files_are_both_heard_or_an_error(first, kinds):
    for second, data in kinds.items():
        try:
            heard = seconds_of(kinds[first] + data)
        except ValueError as error:
            assert "clip 7" in str(error), second
        else:
            assert heard == pytest.approx(seconds_of(kinds[first]) + seconds_of(data), abs=0.1), second
