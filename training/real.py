"""A checkpoint that hears, assembled on this machine, and its answers about real recordings.

Fetches what the repository cannot include: the backbones (real_backbones.py) and the recordings (real_sounds), both
pinned by digest. Merges falcon3-audio-nano's adapter into the backbones, asks the held-out questions, with the clips
and with silence instead, and prints the score and three answers. If it is stopped, run it again to resume.

    python -m falcon3_audio.training.real runs/real --cache debs
    python -m falcon3_audio.training.real runs/real --adapter runs/nano-adapter      # another one
    python -m falcon3_audio.training.real runs/real --audio-model openai/whisper-base --text-model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from transformers import pipeline

from falcon3_audio.evaluation.compare import clips_of, grouped
from falcon3_audio.evaluation.paired import interval_text
from falcon3_audio.evaluation.predictions import Prediction, read_predictions
from falcon3_audio.evaluation.questions import file_sha256
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.evaluation.score_tables import percent
from falcon3_audio.evaluation.scored_rows import tidy
from falcon3_audio.user_errors import GOES_ON, user_errors

from .prepare.real_backbones import make_backbone
from .prepare.real_sounds.build import make_real_sounds
from .prepare.real_sounds.tables import read_packages
from .publishing.merge import merge
from .publishing.push import ADAPTER
from .studies.study_report import accuracy
from .studies.study_runs import Run, scores_of
from .studies.study_tables import table
from .study import ask


ROOT = Path(__file__).resolve().parent
RECIPE = ROOT / "recipes" / "nano.yaml"
NANO = ROOT.parent / "model_cards" / "falcon3-audio-nano"
BACKBONES = {"audio_model": "whisper-base", "text_model": "smollm2-135m-instruct"}
ASKED = {"benchmark": "mmau", "prompt": "audio-world", "max_new_tokens": 24, "batch_size": 16, "controls": ["silence"]}
SHOWN = ("Language", "Sound", "Instrument")  # types of question; one of each is asked without options


def make_model(out: Path, adapter: Path, audio_model: str | None, text_model: str | None) -> Path:
    """Merges the adapter into its backbones, in a folder of `out` named after its digest and theirs; returns that."""
    given = {"audio_model": audio_model, "text_model": text_model}
    backbones = {
        option: given[option] or str(make_backbone(name, out / "backbones")) for option, name in BACKBONES.items()
    }
    name = file_sha256(adapter / ADAPTER[1])[:8]
    name += "".join(f"-{given[option]}".replace("/", "_") for option in BACKBONES if given[option])
    model = out / name / "model"
    if not model.exists():
        merge(adapter, model, **backbones)
    return model


def scores(run: Run) -> str:
    """Right answers with the clips and with silence, with 95 % intervals, overall and by task, as Markdown."""
    (evaluation,) = run.evaluations
    heard, silent = (
        [tidy(row) for row in read_predictions(scores_of(run, evaluation, control)).rows]
        for control in evaluation.controls
    )
    clips = clips_of(heard)
    parts = {"all": np.arange(len(heard))} | grouped(heard, ["task"])["task"]
    rows = []
    for name, part in parts.items():
        cells = [
            _share([replies[index] for index in part], clips[part], evaluation.rule) for replies in (heard, silent)
        ]
        rows.append([name, str(len(part)), *cells])
    return table(["task", "questions", "right (%)", "right with silence (%)"], rows)


def _share(rows: list[Prediction], clips: np.ndarray, rule: str) -> str:
    found = accuracy(np.array([[is_right(row, rule) for row in rows]]).astype(int), clips)
    return f"{percent(found['accuracy'])} {interval_text(found['interval'])}"


def answers(model: Path, test: Path) -> list[str]:
    """A question without options about one held-out recording of each type in `SHOWN`, with the model's answer."""
    pipe = pipeline("audio-text-to-text", model=str(model), dtype="auto")
    lines = []
    rows = json.loads(test.read_text(encoding="utf-8"))
    for kind in SHOWN:
        row = next((row for row in rows if row["sub-category"] == kind), None)
        if row is None:  # a set without the packages for it
            continue
        content = [
            {"type": "audio", "path": str(test.parent / row["audio_id"])},
            {"type": "text", "text": row["question"]},
        ]
        said = pipe(text=[{"role": "user", "content": content}], max_new_tokens=24, return_full_text=False)
        lines.append(
            f"{row['audio_id']}: {row['question']}  ->  {said[0]['generated_text']!r} (it is {row['answer']!r})"
        )
    return lines


def run(out: Path, cache: Path | None, adapter: Path, audio_model: str | None, text_model: str | None) -> int:
    """Runs everything; returns the exit code."""
    begin = time.monotonic()
    model = make_model(out, adapter, audio_model, text_model)
    print(f"the model is in {model} ({time.monotonic() - begin:.0f} s)", flush=True)
    ready = time.monotonic()
    packages = read_packages()
    size = sum(package.megabytes for package in packages) / 1000
    print(
        f"recordings from {len(packages)} packages ({size:.1f} GB): fetched unless they are in the cache",
        flush=True,
    )
    report = make_real_sounds(out / "sounds", cache, packages=packages, progress=True)
    for package, why in report["missing"].items():
        print(f"NOTE: without {package}: {why}", file=sys.stderr)
    print(f"recordings and questions are in {out / 'sounds'} ({time.monotonic() - ready:.0f} s)", flush=True)
    test = out / "sounds" / "test.json"
    asked = ask(model, ASKED | {"data": str(test)}, model.parent, RECIPE)
    if asked is None:
        return 1
    print("", scores(asked), "", *answers(model, test), sep="\n")
    print(f"\n{time.monotonic() - begin:.0f} s in total")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for backbones, recordings, model and scores")
    parser.add_argument("--cache", metavar="DEBS", type=Path, help="folder of the fetched packages (default: in OUT)")
    parser.add_argument(
        "--adapter", type=Path, default=NANO, help="from `falcon3-audio export-adapter` (default: %(default)s)"
    )
    parser.add_argument("--audio-model", help="Whisper: Hub id or folder (default: built from a package)")
    parser.add_argument("--text-model", help="language model: Hub id or folder (default: built from a package)")
    given = parser.parse_args(arguments)
    with user_errors("real", goes_on=GOES_ON) as end:
        if not (given.adapter / ADAPTER[1]).exists():
            raise ValueError(f"no adapter ({ADAPTER[1]}) in {given.adapter}; the nano adapter is only in a clone.")
        return run(given.output, given.cache, given.adapter, given.audio_model, given.text_model)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
