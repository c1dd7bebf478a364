"""Files that soundfile alone cannot read: other formats, created with the FFmpeg of PyAV, and FLAC from a stream."""

import io
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from tiny import tone


RATE = 44_100
STEREO = np.stack([tone(2.0, 440, RATE), tone(2.0, 997, RATE)])  # 2 s


def with_ffmpeg(
    container: str,
    codec: str,
    samples: np.ndarray = STEREO,
    rate: int = RATE,
    bit_rate: int | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """`samples` (channels, samples) as a file: `ipod` (m4a) with `alac` preserves 16 bits, `aac` does not."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"  # not only in memory: to put its index first, FFmpeg opens it again
        with av.open(path, "w", format=container, options=options or {}) as out:
            stream = out.add_stream(codec, rate=rate)
            stream.layout = layout
            if bit_rate:
                stream.bit_rate = bit_rate
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout)
            frame.sample_rate = rate
            for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
                out.mux(stream.encode(part))
            out.mux(stream.encode(None))
        return path.read_bytes()


def with_pictures(
    container: str, codec: str, pictures: str = "", late: float = 0.0, pause: float = 0.0, rate: int = RATE
) -> bytes:
    """2 s of noise, `late` and with a `pause` in the middle (seconds), next to 5 s of pictures if their codec is given."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        sound = out.add_stream(codec, rate=rate, bit_rate=128_000)
        if pictures:
            shown = out.add_stream(pictures, rate=5)
            shown.width, shown.height, shown.pix_fmt = 32, 32, "yuv420p"
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 4 * rate)).astype(np.float32)  # mono would be doubled
        frame = av.AudioFrame.from_ndarray(noise, format="flt", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*sound.encode(frame), *sound.encode(None)]:
            half = packet.pts * packet.time_base >= 1
            packet.pts = packet.dts = packet.pts + round((late + half * pause) / packet.time_base)
            out.mux(packet)
        for number in range(25 if pictures else 0):
            out.mux(shown.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")))
        if pictures:
            out.mux(shown.encode(None))
    return file.getvalue()


def flac_of_a_stream(samples: np.ndarray, rate: int = RATE) -> bytes:
    """FLAC from an encoder that cannot seek back to write the number of samples: 36 bits of its first block are 0."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC")
    data = file.getvalue()
    return data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]


M4A = with_ffmpeg("ipod", "alac")
