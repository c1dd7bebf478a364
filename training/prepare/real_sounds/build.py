"""Creates a set of questions about real recordings of speech, sounds and music from free Debian packages.

31 packages of 2.1 GB (`--sources` lists them with licences) are fetched once with apt-get into a cache and checked by
digest. Their recordings are read and labelled by the packages' own texts and names; composites and phrases played on
soundfonts are added. Test and validation hold whole voices, games and instruments that are not trained on. Run the
same command again to resume a killed run; a seed always gives the same bytes. Needs Debian or Ubuntu's apt-get and
`pip install --no-deps tinysoundfont`. training/prepare/README.md says what is in the set, and what is not.

    falcon3-audio real-sounds data/real_sounds --cache ~/.cache/real_sounds

In OUT: train_speech.jsonl, train_sound.jsonl, train_music.jsonl (a clip and its questions per line), validation.json
and test.json (MMAU's format), clips.jsonl (labels, source, licence, seconds, split and voice of each clip),
sources.json (what was used of each package), report.json (the summary), audio/.
"""

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tqdm.auto import tqdm

from falcon3_audio.user_errors import GOES_ON, user_errors
from falcon3_audio.whole_files import write_json

from ...data.shards import REPORT, begin_set
from .benchmark import DOMAINS, benchmark_rows, trained_answers
from .clips import MIXED, TEST, TRAIN, VALIDATION, Clip
from .composites import COMPOSITE, Composer
from .held_out import read_splits
from .packages import WHERE, Obtained, obtain
from .quality import Refused, accept, near_copies
from .questions import training_rows
from .recordings import read_recordings
from .soundfonts import play_all, require_player
from .tables import SOUNDFONT, Package, read_packages
from .writing import clip_row, copy_recordings, remove_others, write_benchmark, write_jsonl


FORMAT = 2  # raised whenever the same parameters would give other files
HELD_OUT_SHARE, LEAST_COMPOSITES = 8, 40  # per kind of composite, an eighth of training's is held out, at least 40
# A file per domain: there are ten times as many questions about speech, and recipes weight each set separately.
TRAINING_FILES = {domain: f"{TRAIN}_{domain}.jsonl" for domain in DOMAINS}
ABOUT_CLIPS = (*TRAINING_FILES.values(), "validation.json", "test.json", "clips.jsonl")

Counts = dict[str, Counter[str]]  # split -> domain -> number


HELP = {
    "test_questions": "for each domain",
    "validation_questions": "for each domain; 0: its recordings are for training",
    "composites": "of each kind, for training",
    "phrases": "on each soundfont",
    "seed": "of all draws",
}


@dataclass(frozen=True)
class Wanted:
    """
    What decides the bytes of a set, apart from the packages.

    Args:
        test_questions, validation_questions: for each domain. Without validation questions its recordings are for
            training.
        composites: of each kind, for training.
        phrases: on each soundfont.
        seed: of all draws.
    """

    test_questions: int = 150
    validation_questions: int = 100
    composites: int = 320
    phrases: int = 624
    seed: int = 0

    def __post_init__(self):
        for name, number in asdict(self).items():
            if number < 0:
                raise ValueError(f"got {name}={number}; expected 0 or more")


def make_real_sounds(
    out: str | Path,
    cache: str | Path | None = None,
    wanted: Wanted | None = None,
    packages: Sequence[Package] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Write a set into the folder `out`; returns the content of its report.json. A finished set is left alone if the same
    packages are available and its files still have the same sizes; otherwise it is written again.

    Args:
        cache: folder of the packages, by default `out/packages`; other sets can share it.
        packages: by default those of packages.tsv.
        progress: show progress bars.

    Raises:
        `ValueError`: no package is available, a program or tinysoundfont is missing, `out` holds something else, or
            another process prepares a set there.
        `OSError`: the disk is full.
    """
    wanted, packages = wanted or Wanted(), tuple(packages or read_packages())
    if any(SOUNDFONT in package.readers for package in packages):
        require_player()
    out = Path(out).resolve()
    cache = Path(cache).resolve() if cache else out / "packages"
    with begin_set(out, {"source": "real-sounds", "format": FORMAT, **asdict(wanted)}) as report:
        return _make(report, out, cache, wanted, packages, progress)


def _make(
    report: dict[str, Any], out: Path, cache: Path, wanted: Wanted, packages: tuple[Package, ...], progress: bool
) -> dict[str, Any]:
    obtained = obtain(packages, cache, progress)
    same = report["finished"] and report["packages"] == sorted(obtained.folders)
    if same and report.get("files") == sizes(out):
        return report
    if not same:
        _withdraw_questions(out, report)
    refused: Refused = Counter()
    clips = make_clips(packages, obtained, out, cache, wanted, refused, progress)
    questions = write_questions(clips, out, wanted)
    clips = [clip for clip in clips if clip.split != MIXED]
    write_jsonl(out / "clips.jsonl", map(clip_row, clips))
    write_json(out / "sources.json", [source_row(package, obtained, clips, refused) for package in packages])
    remove_others(out / "audio", clips)
    report |= {"finished": True, **summary(clips, questions, obtained), "files": sizes(out)}
    write_json(out / REPORT, report)
    return report


def _withdraw_questions(out: Path, report: dict[str, Any]) -> None:
    """
    Clips of another seed or of other packages get the names of existing ones, so the questions about these are deleted
    first: a run that stops early leaves no questions about other clips.
    """
    if report["finished"]:
        report["finished"] = False
        write_json(out / REPORT, report)
    for name in ABOUT_CLIPS:
        (out / name).unlink(missing_ok=True)


def sizes(out: Path) -> dict[str, int]:
    """Bytes of each file about clips, of sources.json and of all clips, and the number of clips; 0 if missing."""
    clips = [path.stat().st_size for path in (out / "audio").rglob("*") if path.is_file()]
    files = {name: out / name for name in (*ABOUT_CLIPS, "sources.json")}
    found = {name: path.stat().st_size if path.exists() else 0 for name, path in files.items()}
    return found | {"audio": sum(clips), "clips": len(clips)}


def make_clips(
    packages: tuple[Package, ...],
    obtained: Obtained,
    out: Path,
    cache: Path,
    wanted: Wanted,
    refused: Refused,
    progress: bool = False,
) -> list[Clip]:
    """All clips of the set, written below `out/audio`: recordings, phrases and composites."""
    splits = read_splits(validation=wanted.validation_questions > 0)
    recordings = read_recordings(packages, obtained.folders, splits)
    clips = accept(recordings, refused, cache / "checked.json", progress)
    leave_out_near_copies(clips, refused)
    copy_recordings(tqdm(clips, "copying", unit="clip", disable=not progress), obtained.folders, out)
    played = play_all(packages, obtained.folders, splits, out, wanted.phrases, wanted.seed)
    clips += tqdm(played, "playing", unit="phrase", disable=not progress)
    fewer = max(wanted.composites // HELD_OUT_SHARE, LEAST_COMPOSITES)
    for split, times in ((TRAIN, wanted.composites), (TEST, fewer), (VALIDATION, fewer)):
        composer = Composer(clips, out, split, wanted.seed)
        clips += composer.run(tqdm(range(times), f"composing {split}", disable=not progress))
    return clips


def leave_out_near_copies(clips: list[Clip], refused: Refused) -> None:
    """Takes validation's recordings that are altered copies of training clips out of all splits."""
    held_out = [index for index, clip in enumerate(clips) if clip.split == VALIDATION]
    trained = [index for index, clip in enumerate(clips) if clip.split == TRAIN]
    for index in near_copies(clips, held_out, trained):
        clips[index].split = MIXED
        refused[clips[index].source, "near copy of a training clip"] += 1


def write_questions(clips: Sequence[Clip], out: Path, wanted: Wanted) -> Counts:
    """
    Write the files of questions; returns their numbers by split and domain.

    Clips that validation takes away take part in the draws, too, so the others and the test do not depend on it.
    """
    draw = Random(wanted.seed)
    draw_validation = Random(f"{wanted.seed} {VALIDATION}")
    trainable = [clip for clip in clips if is_trainable(clip)]
    train = [clip for clip in trainable if clip.split == TRAIN]
    rows = [(clip, row) for clip, row in training_rows(trainable, draw) if clip.split == TRAIN]
    counts: Counts = {TRAIN: Counter()}
    for domain, name in TRAINING_FILES.items():
        own = [row for clip, row in rows if clip.domain == domain]
        if own:
            write_jsonl(out / name, own)
            counts[TRAIN][domain] = sum(len(row["questions"]) for row in own)
    for split, number, known, own_draw in (
        (TEST, wanted.test_questions, trainable, draw),
        (VALIDATION, wanted.validation_questions, train, draw_validation),
    ):
        held_out = [clip for clip in clips if clip.split == split]
        asked = benchmark_rows(held_out, trained_answers(known), split, number, own_draw)
        write_benchmark(out / f"{split}.json", asked)
        counts[split] = Counter(row["task"] for row in asked)
    return counts


def is_trainable(clip: Clip) -> bool:
    """Whether training would have the clip without a validation split."""
    return clip.split != TEST and not (clip.split == VALIDATION and clip.source == COMPOSITE)


def source_row(package: Package, obtained: Obtained, clips: Sequence[Clip], refused: Refused) -> dict[str, Any]:
    """What was used of a package: its clips, and how many of its recordings were refused, and why."""
    own = [clip for clip in clips if clip.source == package.name]
    row = {
        "package": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "licence": package.licence,
        "missing": obtained.missing.get(package.name),
        "clips": len(own),
        "minutes": round(sum(clip.seconds for clip in own) / 60, 1),
    }
    return row | {"refused": {why: n for (source, why), n in sorted(refused.items()) if source == package.name}}


def summary(clips: Sequence[Clip], questions: Counts, obtained: Obtained) -> dict[str, Any]:
    """Clips, hours and questions by split and domain; packages that were used and that are missing."""
    numbers: Counts = {split: Counter() for split in questions}
    seconds: dict[str, dict[str, float]] = {split: dict.fromkeys(DOMAINS, 0.0) for split in questions}
    for clip in clips:
        numbers[clip.split][clip.domain] += 1
        seconds[clip.split][clip.domain] += clip.seconds
    splits = {
        split: {
            domain: {
                "clips": numbers[split][domain],
                "hours": round(seconds[split][domain] / 3600, 3),
                "questions": questions[split][domain],
            }
            for domain in DOMAINS
        }
        for split in (TRAIN, VALIDATION, TEST)
    }
    return {"splits": splits, "packages": sorted(obtained.folders), "missing": obtained.missing}


def print_summary(report: Mapping[str, Any], out: Path) -> None:
    print(out)
    for split, domains in report["splits"].items():
        total = {key: sum(counts[key] for counts in domains.values()) for key in ("clips", "hours", "questions")}
        for domain, counts in {**domains, "all": total}.items():
            print(
                f"  {split:<10} {domain:<7} {counts['clips']:>6} clips {counts['hours']:>7.2f} hours "
                f"{counts['questions']:>6} questions"
            )
    missing = report["missing"]
    print(f"{len(report['packages'])} packages used, {len(missing)} missing")
    for name, why in missing.items():
        print(f"  {name}: {why}")
    if missing:
        print(f"The set is smaller without them; run the same command again to add the ones available: {WHERE}")


def source_table(packages: Sequence[Package]) -> str:
    """The packages in Markdown."""
    head = "| package | version | MB | licence | what is used |\n|---|---|---|---|---|\n"
    rows = (f"| {p.name} | {p.version} | {p.megabytes:g} | {p.licence} | {p.content} |\n" for p in packages)
    return head + "".join(rows)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="falcon3-audio real-sounds", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help="folder of the set")
    parser.add_argument("--cache", type=Path, help="folder of the packages, 5 GB (default: OUT/packages)")
    parser.add_argument("--sources", action="store_true", help="print the packages and their licences, and exit")
    for name, what in HELP.items():
        default = getattr(Wanted, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{what} (default: {default})"
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = vars(parser.parse_args(arguments))
    out, cache, sources = (options.pop(name) for name in ("out", "cache", "sources"))
    if sources:
        print(source_table(read_packages()), end="")
        return 0
    if out is None:
        parser.error("give the folder OUT of the set, or --sources")
    with user_errors(parser.prog, breaks=(OSError, subprocess.CalledProcessError), goes_on=GOES_ON) as end:
        report = make_real_sounds(out, cache, Wanted(**options), progress=sys.stderr.isatty())
        print_summary(report, out)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
