"""A source for Open-ASQA's preparation: JSON in the published layout, and the audio folders of a user."""

import json
import random

import soundfile
from tiny import tone

from falcon3_audio.training.prepare.open_asqa import prepare


CLIPS, QUESTIONS = 12, 3
SETS = ("as_20k", "as_2m", "libritts_tr")
AUDIOSET, LIBRITTS = "/data/sls/audioset/dave_version/audio", "/data/sls/scratch/libritts/train"


def write_source(folder, clips=CLIPS):
    """
    A JSON in the published layout with the rows of a clip far apart, and the user's own audio folders.

    Two of a clip's three rows have a transcript; AudioSet's flac files are wav here, LibriTTS has speaker folders.
    """
    rows = []
    for number in range(clips):
        name = SETS[number % 3]
        speech = name == "libritts_tr"
        path = f"{LIBRITTS}/{number % 2}/{number}.flac" if speech else f"{AUDIOSET}/id-{number}.flac"
        mine = folder / "speech" / str(number % 2) / f"{number}.flac" if speech else folder / "as" / f"id-{number}.wav"
        mine.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(mine, tone(0.1 + number / 100, 300 + 10 * number), 16_000, "PCM_16")
        for question in range(QUESTIONS):
            text = {"instruction": f"What is {question} in «{number}»?", "output": f"It is {number}.", "task": "open"}
            heard = f"said in {number}" if question else ""
            rows.append({**text, "input": heard, "audio_id": path, "dataset": name})
    random.Random(0).shuffle(rows)
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return rows


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def roots_of(folder):
    return [("as_*", str(folder / "as")), ("libritts_tr", str(folder / "speech"))]


def run(source, out, **options):
    return prepare(source / "rows.json", out, roots_of(source), **options)


def rewrite(source, change):
    rows = json.loads((source / "rows.json").read_text())
    change(rows)
    (source / "rows.json").write_text(json.dumps(rows))
