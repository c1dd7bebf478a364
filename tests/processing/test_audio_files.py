"""Complete files are read completely, whatever length their headers claim; truncated files are an error."""

import io
import multiprocessing
import struct

import av
import numpy as np
import pytest
import soundfile
from ffmpeg_files import M4A, STEREO, with_ffmpeg, with_pictures
from ffmpeg_files import RATE as RATE_OF_M4A
from sound_files import (
    ID3,
    LONG,
    RATE,
    SHORT,
    TAG,
    encode,
    plain,
    put,
    streamed_wav,
    without_length,
)
from tiny import tone

from falcon3_audio.processing import load_audio
from falcon3_audio.processing.audio_files_falcon3_audio import decode_file


NOISE = (np.random.default_rng(0).normal(0, 0.1, 4 * RATE)).astype(np.float32).clip(-1, 1)


def flac_of_length(data: bytes, samples: int) -> bytes:
    """The file with `samples` as the number of samples in its header, 36 bits; 0 means unknown."""
    return data[:21] + bytes([data[21] & 0xF0 | samples >> 32]) + struct.pack(">I", samples & 0xFFFFFFFF) + data[26:]


def ogg_of_length(data: bytes, samples: int) -> bytes:
    """The file with `samples` as the position of its last page, from which an Ogg file's length is read."""
    start = data.rfind(b"OggS")
    page = bytearray(data[start:])
    page[6:14], page[22:26] = struct.pack("<q", samples), bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", crc)
    return data[:start] + bytes(page)


def seconds(data: bytes, **options) -> float:
    samples, rate = decode_file(data, "clip 7", **options)
    return len(samples) / rate


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate", [44_100, 24_000, 16_000])
def test_an_mp3_that_does_not_say_how_long_it_is(rate, mode):
    mp3 = encode(tone(4.0, 300, rate), "MP3", rate, bitrate_mode=mode)
    whole = without_length(mp3)
    for data in (whole, ID3 + whole, whole + TAG, ID3 + whole + TAG):
        assert seconds(data) == pytest.approx(4.0, abs=4 * 1152 / rate)
    middle = decode_file(whole, "clip 7")[0][rate : 2 * rate, 0]
    assert np.sqrt(np.square(middle).mean()) == pytest.approx(np.sqrt(np.square(tone(1.0, 300)).mean()), rel=0.02)
    with pytest.raises(ValueError, match="clip 7 is truncated or damaged"):
        decode_file(whole[: len(whole) // 2 + 30], "clip 7")  # within a frame


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "ULAW"])
def test_sphere_files_are_whole_or_errors(subtype):
    """The format of TIMIT and other LDC corpora."""
    data = encode(NOISE[:RATE], "NIST", subtype=subtype)
    np.testing.assert_array_equal(decode_file(data, "clip 7")[0], plain(data))
    for end in (-3, len(data) // 2):
        with pytest.raises(ValueError, match=f"clip 7 is truncated: it announces {RATE} samples"):
            decode_file(data[:end], "clip 7")


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("SDS", "PCM_16"), ("AU", "G721_32"), ("SVX", "PCM_16"), ("MAT5", "FLOAT"), ("PVF", "PCM_16"), ("IRCAM", "ULAW")],
)
def test_files_of_which_nothing_tells_whether_they_are_whole(format, subtype):
    """libsndfile goes by file size: half a file passed as complete, and the first two formats were read endlessly."""
    data = encode(NOISE[:RATE], format, subtype=subtype)
    for end in (len(data), len(data) // 2):
        with pytest.raises(ValueError, match="clip 7 is .*whether such a file is complete"):
            decode_file(data[:end], "clip 7")


def test_no_file_is_read_for_ever():
    """libsndfile looks for the end of such files on opening. In a separate process: a thread could not be killed."""
    files = [encode(NOISE[:count], "SVX", subtype="PCM_S8") for count in (1, 100, 101, 4001)]
    files += [ID3 + files[2], files[2][:-1], encode(NOISE[:101], "SDS", subtype="PCM_16")]

    def refuse_all():
        for data in files:
            with pytest.raises(ValueError, match="whether such a file is complete|cannot be decoded"):
                decode_file(data, "clip 7")

    child = multiprocessing.get_context("fork").Process(target=refuse_all)
    child.start()
    child.join(60)
    child.kill()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("format", ["MP3", "FLAC", "OGG", "WAV"])
def test_joined_files_are_heard_one_after_the_other(format):
    first, second = encode(SHORT, format), encode(LONG, format)
    joints = [first + second, first + second + first]
    if format == "MP3":
        joints += [ID3 + first + ID3 + second, first + TAG + second + TAG, first + ID3 + second + TAG]
    for data in joints:
        wanted = [plain(first), plain(second), plain(first)][: 3 if data == joints[1] else 2]
        samples, rate = decode_file(data, "clip 7")
        assert rate == RATE
        np.testing.assert_allclose(samples, np.concatenate(wanted), atol=1e-6)
    assert len(load_audio(first + second)) == 3 * RATE


@pytest.mark.parametrize("format", ["MP3", "FLAC", "OGG", "WAV"])
def test_joined_files_of_which_one_was_cut_or_has_another_rate(format):
    first, second = encode(SHORT, format), encode(LONG, format)
    with pytest.raises(ValueError, match="clip 7 .*(truncated|decoded)"):
        decode_file(first + second[: len(second) // 2], "clip 7")
    other = encode(tone(1.0, rate=24_000), format, 24_000)
    with pytest.raises(ValueError, match=r"clip 7 holds concatenated files .*\[16000, 24000\] Hz"):
        decode_file(first + other, "clip 7")


def test_an_mp3_with_something_else_behind_it_says_so(caplog):
    first = encode(SHORT, "MP3")
    samples = decode_file(first + b"APETAGEX" + bytes(3000), "a clip with a tag")[0]
    np.testing.assert_allclose(samples, plain(first), atol=1e-6)
    assert "a clip with a tag: 3008 bytes after" in caplog.text


@pytest.mark.parametrize("samples", [NOISE, LONG], ids=["noise", "tone"])
def test_flac_with_a_wrong_length(samples, caplog):
    data = encode(samples, "FLAC")
    np.testing.assert_array_equal(decode_file(flac_of_length(data, 0), "clip 7")[0], plain(data))
    assert "clip 7" not in caplog.text
    np.testing.assert_array_equal(decode_file(flac_of_length(data, RATE // 2), "clip 7")[0], plain(data))
    assert f"clip 7 announces 8000 samples and holds {len(samples)}" in caplog.text
    cut = [flac_of_length(data, 0)[:end] for end in (len(data) // 2, len(data) // 2 + 1, -1, -50)]
    for wrong in (flac_of_length(data, len(samples) + 5000), *cut):
        with pytest.raises(ValueError, match="clip 7 is truncated"):
            decode_file(wrong, "clip 7")


def test_a_tag_behind_flac_is_no_sound():
    data = encode(LONG, "FLAC")
    np.testing.assert_array_equal(decode_file(data + TAG, "clip 7")[0], plain(data))


@pytest.mark.parametrize("stray", [b"\xff", b"\xff\xfe\x80"])
def test_a_stray_byte_behind_wav_is_no_sound(stray):
    data = encode(LONG, "WAV")
    np.testing.assert_array_equal(decode_file(data + stray, "clip 7")[0], plain(data))


@pytest.mark.parametrize("count", [RATE, RATE + 1])
def test_a_chunk_behind_8_bit_wav_is_no_sound(count):
    """After an odd number of bytes the chunk starts one byte later."""
    data = encode(tone(2.0, 300)[:count], "WAV", subtype="PCM_U8")
    whole = data + bytes(len(data) % 2) + b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + bytes(18)
    assert len(decode_file(whole, "clip 7")[0]) == count


@pytest.mark.parametrize("first", [(0, 0, 1, 0), (5, 3, 2, 1), (3, 2, 256, 0, 0), (5, 3, 1, 256), (-127, 128, 127, 9)])
def test_sound_behind_the_end_that_a_wav_gives_is_no_chunk_however_it_begins(first):
    more = np.array(first, "<i2").tobytes() + (NOISE * 32767).astype("<i2").tobytes()
    with pytest.raises(ValueError, match="clip 7 continues for at least"):
        decode_file(encode(SHORT, "WAV") + more, "clip 7")


@pytest.mark.parametrize("format", ["FLAC", "OGG", "WAV"])
def test_joined_files_of_one_and_two_channels_are_mixed_down(format):
    stereo = np.stack([LONG, np.zeros_like(LONG)], axis=1)
    samples, _ = decode_file(encode(SHORT, format) + encode(stereo, format), "clip 7")
    assert samples.shape == (len(SHORT) + len(LONG), 1)
    np.testing.assert_allclose(samples[: len(SHORT)], plain(encode(SHORT, format)), atol=1e-6)
    middle = samples[len(SHORT) + RATE // 2 : -RATE // 2, 0]
    assert np.abs(middle).max() == pytest.approx(np.abs(LONG).max() / 2, rel=0.05)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_that_goes_on_behind_the_end_it_gives(subtype):
    data = encode(NOISE, "OGG", subtype=subtype)
    assert seconds(ogg_of_length(data, len(NOISE) * (3 if subtype == "OPUS" else 1) - 100)) > 3.9
    with pytest.raises(ValueError, match="clip 7 continues for at least .* after the .* s given in its header"):
        decode_file(ogg_of_length(data, RATE // 2), "clip 7")


def test_wav_of_unknown_length():
    data = encode(LONG, "WAV")
    start = data.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0):
        for piped in (put(data, start, struct.pack("<I", unknown)), streamed_wav(LONG, unknown)):
            np.testing.assert_array_equal(decode_file(piped, "clip 7")[0], plain(data))
    with pytest.raises(ValueError, match="clip 7 .*(truncated|decoded)"):
        decode_file(data[:start] + struct.pack("<I", len(data)) + data[start + 4 :], "clip 7")
    with pytest.raises(ValueError, match="clip 7 continues for at least"):
        decode_file(put(data, start, struct.pack("<I", 20_000)), "clip 7")


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_compressed_wav_that_was_cut_off(subtype):
    data = encode(LONG, "WAV", subtype=subtype)
    np.testing.assert_array_equal(decode_file(data, "clip 7")[0], plain(data))
    with pytest.raises(ValueError, match="clip 7 is truncated"):
        decode_file(data[: len(data) // 2], "clip 7")


@pytest.mark.parametrize("format", ["W64", "CAF", "RF64"])
def test_rarer_containers_are_whole_or_errors(format):
    """64-bit containers: truncated, followed by other audio, or with the padding that some programs leave."""
    data = encode(NOISE[: RATE + 1], format, subtype="PCM_16")
    np.testing.assert_array_equal(decode_file(data, "clip 7")[0], plain(data))
    for cut in (2, 500):
        with pytest.raises(ValueError, match="clip 7 is truncated"):
            decode_file(data[:-cut], "clip 7")
    with pytest.raises(ValueError, match="clip 7 (continues for|holds several)"):
        decode_file(data + data, "clip 7")
    np.testing.assert_array_equal(decode_file(data + bytes(64), "clip 7")[0], plain(data))
    if format == "W64":  # written to a pipe: its size is unknown
        streamed = data[:16] + b"\xff" * 8 + data[24:]
        np.testing.assert_array_equal(decode_file(streamed, "clip 7")[0], plain(data))


@pytest.mark.parametrize("format", ["MP3", "FLAC", "OGG", "WAV"])
def test_no_more_is_decoded_than_allowed(format):
    data = encode(LONG, format)
    assert seconds(data, max_seconds=2.0) == 2.0
    for longer in (data, encode(SHORT, format) + data):
        with pytest.raises(ValueError, match=r"clip 7 is longer than 1\.5 s"):
            decode_file(longer, "clip 7", max_seconds=1.5)
    unknown = flac_of_length(encode(np.zeros(100 * RATE), "FLAC"), 0)
    with pytest.raises(ValueError, match="clip 7 is longer than 20 s"):
        load_audio(unknown, name="clip 7", max_seconds=20)


# Formats that soundfile does not support.


def test_m4a_is_heard_from_paths_bytes_and_dicts_alike(tmp_path):
    path = tmp_path / "clip.m4a"
    path.write_bytes(M4A)
    wanted = load_audio(STEREO, RATE_OF_M4A)
    sources = [path, str(path), M4A, io.BytesIO(M4A), {"bytes": M4A, "path": "clip.m4a"}, {"path": str(path)}]
    for source in [*sources, np.frombuffer(M4A, np.uint8)]:
        np.testing.assert_allclose(load_audio(source), wanted, atol=2**-14)  # decoded as 16 bits
    np.testing.assert_allclose(load_audio(M4A, RATE_OF_M4A), wanted, atol=2**-14)  # its own rate
    with pytest.raises(ValueError, match="clip 7 is longer than 0.5 s"):
        load_audio(M4A, name="clip 7", max_seconds=0.5)


@pytest.mark.parametrize(
    "container, codec, rate", [("webm", "libopus", 48_000), ("mp4", "aac", 44_100), ("adts", "aac", 16_000)]
)
def test_what_browsers_and_phones_record_is_heard(container, codec, rate):
    samples = tone(2.0, 440, rate)
    heard, its_rate = decode_file(with_ffmpeg(container, codec, samples[None], rate), "clip 7")
    assert its_rate == rate and abs(len(heard) / rate - 2.0) < 0.2  # encoders fill up their blocks
    spectrum = np.abs(np.fft.rfft(heard[: 2 * rate, 0]))
    assert abs(spectrum.argmax() / 2 - 440) < 2


def test_files_of_other_formats_that_were_cut():
    webm = with_ffmpeg("webm", "libopus", rate=48_000)
    with pytest.raises(ValueError, match=r"clip 7 is truncated: it announces [12]\.\d s and holds [01]\.\d s"):
        load_audio(webm[: len(webm) // 2], name="clip 7")
    with pytest.raises(ValueError, match="(?s)clip 7 cannot be decoded.*PyAV.*Invalid data"):
        load_audio(M4A[: len(M4A) // 2], name="clip 7")


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nfile://{}\n#EXT-X-ENDLIST\n"],
)
def test_a_list_of_other_files_opens_none_of_them(tmp_path, text, monkeypatch):
    path = tmp_path / "secret.wav"
    soundfile.write(path, SHORT, RATE)
    with pytest.raises(ValueError, match="clip 7 cannot be decoded"):
        load_audio(text.format(path).encode(), name="clip 7")


PICTURES = {
    "webm": ("libopus", "libvpx", 48_000),
    "matroska": ("aac", "mpeg4", 44_100),
    "mp4": ("aac", "mpeg4", 44_100),
    "flv": ("aac", "flv", 44_100),
    "asf": ("wmav2", "wmv2", 44_100),
    "avi": ("mp2", "mpeg4", 44_100),
}


@pytest.mark.parametrize("container", PICTURES)
def test_pictures_can_go_on_after_the_sound(container):
    codec, pictures, rate = PICTURES[container]
    data = with_pictures(container, codec, pictures, rate=rate)
    assert abs(seconds(data) - 2) < 0.1
    for part in (0.3, 0.7, 0.95):
        with pytest.raises(ValueError, match="clip 7"):
            decode_file(data[: int(len(data) * part)], "clip 7")


@pytest.mark.parametrize("late, pause", [(3, 0), (0, 3)])
@pytest.mark.parametrize("container", ["webm", "matroska", "mp4", "flv", "asf"])
def test_sound_that_begins_late_or_pauses_is_whole(container, late, pause):
    codec, pictures, rate = PICTURES[container]
    for shown in ("", pictures):
        assert abs(seconds(with_pictures(container, codec, shown, late, pause, rate)) - 2) < 0.1


@pytest.mark.parametrize("container", ["webm", "avi"])
def test_a_damaged_part_is_no_pause(container):
    codec, _, rate = PICTURES[container]
    data = with_pictures(container, codec, rate=rate)
    half = len(data) // 2
    with pytest.raises(ValueError, match="clip 7 is truncated"):
        decode_file(data[:half] + bytes(len(data) // 3) + data[half + len(data) // 3 :], "clip 7")


def test_a_file_with_pictures_alone(monkeypatch):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(ValueError, match="clip 7 cannot be decoded.*PyAV.* it contains no audio"):
        load_audio(file.getvalue(), name="clip 7")


def test_without_pyav(monkeypatch):
    monkeypatch.setattr("falcon3_audio.processing.audio_files_falcon3_audio.av", None)
    with pytest.raises(
        ValueError, match="clip 7 cannot be decoded.*m4a, mp4, webm and others need PyAV: pip install av"
    ):
        load_audio(M4A, name="clip 7")
