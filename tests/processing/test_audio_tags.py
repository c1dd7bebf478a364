"""Tags, padding and other files before, between and after audio: it is heard completely, and they are not heard."""

import io

import av
import numpy as np
import pytest
from ffmpeg_files import M4A, STEREO, with_ffmpeg
from ffmpeg_files import RATE as RATE_OF_M4A
from sound_files import (
    ID3,
    ID3_WITH_FOOTER,
    LONG,
    LYRICS,
    SHORT,
    TAG,
    ape,
    chunk,
    encode,
    plain,
    streamed_wav,
    without_length,
)
from tiny import tone

from falcon3_audio.processing.audio_files_falcon3_audio import decode_file
from falcon3_audio.processing.audio_tags_falcon3_audio import after_tags, find_mpeg, split, start_of_mp3


EXTENDED_TAG = b"TAG+" + b"a title".ljust(223) + TAG
TAGS = {
    "id3": ID3,
    "id3 with footer": ID3_WITH_FOOTER,
    "id3v1": TAG,
    "extended": EXTENDED_TAG,
    "ape": ape(header=True),
    "ape with a footer alone": ape(header=False),
    "lyrics": LYRICS,
    "zeros": bytes(5000),
    "set bits": b"\xff" * 5000,
    "several": bytes(9) + ape(header=False) + LYRICS + TAG + ID3,
}
with_each_tag = pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
MP3 = encode(SHORT, "MP3"), encode(LONG, "MP3")
NOISE = np.random.default_rng(0).bytes(3000)


def heard(data: bytes) -> np.ndarray:
    return decode_file(data, "clip 7")[0]


@with_each_tag
def test_a_tag_ends_where_its_size_says(tag):
    for after in (b"", MP3[0], b"RIFF", b"\1"):
        assert after_tags(b"12345" + tag + after, 5) == 5 + len(tag)
    cut = tag[: len(tag) // 2]
    assert after_tags(cut) <= len(cut)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\x1cftypM4A ", b"ID3 is no tag", b"APETAGEX" + bytes(24), MP3[0], encode(SHORT, "WAV")]
)
def test_what_is_no_tag_stays(data):
    assert after_tags(data) == 0
    assert split(data, "clip 7") == [data]


@with_each_tag
def test_mp3_files_with_a_tag_between_them(tag, caplog):
    first, second = MP3
    wanted = np.concatenate([plain(first), plain(second)])
    for data in (first + tag + second, first + tag + second + tag, first + tag + ID3 + second):
        np.testing.assert_allclose(heard(data), wanted, atol=1e-6)
    np.testing.assert_allclose(heard(first + tag), plain(first), atol=1e-6)
    assert "not audio" not in caplog.text


@with_each_tag
@pytest.mark.parametrize("format", ["MP3", "WAV", "FLAC", "OGG", "AIFF", "AU", "NIST"])
def test_a_tag_before_or_after_a_file_is_no_sound(format, tag):
    data = encode(SHORT, format)
    for tagged in (tag + data, data + tag, tag + data + tag):
        np.testing.assert_allclose(heard(tagged), plain(data), atol=1e-6)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "AIFF", "AU", "NIST"])
def test_joined_files_that_each_have_a_tag(format):
    first, second = encode(SHORT, format), encode(LONG, format)
    wanted = np.concatenate([plain(first), plain(second)])
    for data in (first + second, ID3 + first + ID3 + second, first + ID3_WITH_FOOTER + second + TAG):
        np.testing.assert_allclose(heard(data), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0])
@pytest.mark.parametrize("first", [b"", chunk(b"JUNK", bytes(28)), chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf"))])
def test_joined_wav_from_streams_whatever_its_first_chunk_is(size, first):
    wanted = np.concatenate([SHORT, LONG])
    for between in (b"", ID3):
        data = streamed_wav(SHORT, size, first) + between + streamed_wav(LONG, size, first)
        np.testing.assert_allclose(heard(data)[:, 0], wanted, atol=2**-15)


@pytest.mark.parametrize("title", [b"JUNK", b"bext", b"LIST"])
def test_joined_wav_with_another_chunk_first(title):
    first, second = (
        data[:12] + chunk(title, bytes(600)) + data[12:] for data in map(encode, (SHORT, LONG), ["WAV"] * 2)
    )
    for data in (first + second, encode(SHORT, "WAV") + second):
        np.testing.assert_allclose(heard(data)[:, 0], np.concatenate([SHORT, LONG]), atol=2**-15)


@pytest.mark.parametrize("format", ["RF64", "CAF", "W64"])
def test_joined_files_of_64_bits_are_an_error_even_with_another_format(format):
    data = encode(SHORT, format)
    for joined in (data + data, encode(SHORT, "WAV") + data):
        with pytest.raises(ValueError, match="clip 7 (holds several files|continues)"):
            heard(joined)


@pytest.mark.parametrize("before", [b"\r\n\r\n", b"HTTP/1.0 200 OK\r\nicy-name: a station\r\n\r\n"])
def test_text_before_mp3(before, caplog):
    np.testing.assert_allclose(heard(before + MP3[1]), plain(MP3[1]), atol=1e-6)
    assert f"{len(before)} bytes before the audio of an mp3 file are not audio" in caplog.text


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_mp3_that_starts_within_a_frame(rate):
    """From a radio stream. The first frames lack what is stored before them."""
    whole = without_length(encode(tone(2.0, 440, rate), "MP3", rate))
    samples = heard(whole[len(whole) // 2 + 7 :])
    assert len(samples) / rate == pytest.approx(1.0, abs=3 * 1152 / rate)
    spectrum = np.abs(np.fft.rfft(samples[-rate // 2 :, 0]))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=2)


def test_other_bytes_after_flac_are_not_lost():
    """libFLAC reads on, so that libsndfile is at the end of a short file."""
    flac = encode(SHORT, "FLAC")
    np.testing.assert_array_equal(heard(flac + b"\1\2\3"), plain(flac))
    for more in (NOISE, MP3[0], MP3[0] + TAG, b"a" * 9):
        with pytest.raises(ValueError, match="clip 7 continues for at least"):
            heard(flac + more)


def test_mp3_after_other_bytes_is_not_lost(caplog):
    first, second = MP3
    wanted = np.concatenate([plain(first), plain(second)])
    np.testing.assert_allclose(heard(first + NOISE + second), wanted, atol=1e-6)
    assert "3000 bytes before the audio of an mp3 file are not audio" in caplog.text
    np.testing.assert_allclose(heard(first + NOISE), plain(first), atol=1e-6)
    assert "3000 bytes after the audio of an mp3 file are not audio" in caplog.text
    with pytest.raises(ValueError, match="clip 7 (is truncated|holds several files)"):
        heard(first + NOISE + second[: len(second) // 2])


@pytest.mark.parametrize(
    "more",
    [b"\xff" * 1000, TAG + b"\xff" * 10, TAG + b"\xff" * 3, b"\r\n\r\nfree mp3 of the day", b"----wide----"]
    + [b"abcdmoov of the sea", b"\xff\xee" * 40, b"\xff\xf1" + b"\xff" * 40, b"NIST_1A\nis a format"],
)
def test_what_only_resembles_a_file_after_mp3(more):
    np.testing.assert_allclose(heard(MP3[0] + more), plain(MP3[0]), atol=1e-6)


def test_a_part_of_a_frame_after_mp3(caplog):
    first = with_ffmpeg("mp3", "libmp3lame")  # with the number of its frames
    start = find_mpeg(first)
    frames = first[start + 1 :]
    part = frames[find_mpeg(frames) :][:60]
    np.testing.assert_array_equal(heard(first + part), heard(first))
    assert "60 bytes after the audio of an mp3 file are not audio" in caplog.text


def test_padding_before_mp3_does_not_take_the_first_byte_of_its_frame():
    np.testing.assert_allclose(heard(b"\xff" * 1000 + MP3[0]), plain(MP3[0]), atol=1e-6)


def test_files_of_other_formats_after_mp3():
    mp3 = encode(STEREO.T, "MP3", RATE_OF_M4A)
    wav = encode(STEREO.T, "WAV", RATE_OF_M4A)
    for joined, files in ((mp3 + M4A, 2), (mp3 + TAG + M4A, 2), (mp3 + wav + wav, 3)):
        np.testing.assert_allclose(
            heard(joined)[STEREO.shape[1] :], np.concatenate([STEREO.T] * (files - 1)), atol=2**-14
        )
    with pytest.raises(ValueError, match="clip 7 (holds several files|cannot be decoded)"):
        heard(mp3 + encode(SHORT, "FLAC")[:50])


@pytest.mark.parametrize("codec", ["libmp3lame", "mp2"])
@pytest.mark.parametrize("rate", [16_000, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("bit_rate", [64_000, 160_000])
def test_frames_are_found_where_ffmpeg_finds_them(codec, rate, bit_rate):
    data = with_ffmpeg("mp3" if codec == "libmp3lame" else "mp2", codec, tone(1.0, 440, rate)[None], rate, bit_rate)
    with av.open(io.BytesIO(data)) as container:
        places = [packet.pos for packet in container.demux() if packet.pos is not None]
    assert len(places) > 10
    for before, place in zip(places, places[1:-1]):
        assert find_mpeg(data[before + 1 :]) == place - before - 1


def test_noise_and_other_formats_have_no_frames():
    assert find_mpeg(np.random.default_rng(1).bytes(10**6)) is None
    for data in (b"", b"\xff", b"\xff\xfb\x90", b"\xff\xfb\x90\0" * 3, b"\xff" * 5000):
        assert find_mpeg(data) is None


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "flv", "mpegts", "mpeg"])
def test_mp3_inside_another_container_is_no_mp3_file(container):
    """Its frames are not one after the other, or nothing would show that the container is truncated."""
    codec = "mp2" if container == "mpeg" else "libmp3lame"
    options = {"movflags": "faststart"} if container in ("mp4", "mov") else {}
    data = with_ffmpeg(container, codec, options=options)
    assert start_of_mp3(data) is None
    assert start_of_mp3(data[: len(data) // 2]) is None


@pytest.mark.parametrize("container, codec", [("adts", "aac"), ("ac3", "ac3"), ("webm", "libopus"), ("mpegts", "mp2")])
def test_a_short_file_of_another_format_before_mp3_is_not_skipped(container, codec):
    short = with_ffmpeg(container, codec, tone(0.1, 440, 48_000)[None], 48_000)[:1500]
    assert start_of_mp3(short + MP3[1]) is None
    assert start_of_mp3(b"#!AMR\n\x3c" + bytes(range(40)) + MP3[1]) is None
    with pytest.raises(ValueError, match="clip 7 "):
        heard(short + MP3[1])
