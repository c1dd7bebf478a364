"""ESC-50 (github.com/karolpiczak/ESC-50) as published, `meta/esc50.csv` and `audio/`: which of 50 sounds is in a clip?

For a model that was not trained on it, this is zero-shot classification: the options are all labels of the file, as
words and in the order of their numbers, so chance is one in 50. Any file with the columns `filename`, `target` and
`category` works.
Run: `load_esc50("ESC-50/meta/esc50.csv")`
"""

from pathlib import Path
from typing import Any

from .load_checks import FIELD, OnError, Row, RowFault, clip_of, collect, groups_of, read_csv, text_of
from .questions import Question, QuestionSet, file_sha256


ASK = "Which of these is heard?"
COLUMNS = ("filename", "target", "category")
CLIPS = 2_000
# In order of their targets, ten for each of the five published kinds.
LABELS = {
    "animals": ("dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow"),
    "natural soundscapes and water": (
        *("rain", "sea waves", "crackling fire", "crickets", "chirping birds", "water drops", "wind", "pouring water"),
        *("toilet flush", "thunderstorm"),
    ),
    "human, not speech": (
        *("crying baby", "sneezing", "clapping", "breathing", "coughing", "footsteps", "laughing", "brushing teeth"),
        *("snoring", "drinking sipping"),
    ),
    "indoors": (
        *("door wood knock", "mouse click", "keyboard typing", "door wood creaks", "can opening", "washing machine"),
        *("vacuum cleaner", "clock alarm", "clock tick", "glass breaking"),
    ),
    "outdoors": (
        *("helicopter", "chainsaw", "siren", "car horn", "engine", "train", "church bells", "airplane", "fireworks"),
        "hand saw",
    ),
}
KIND_OF = {label: kind for kind, labels in LABELS.items() for label in labels}


def load_esc50(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    A question for each clip, in the groups `label`, `fold` and, for ESC-50's own labels, `kind`.

    Args:
        path: `esc50.csv`.
        audio_root: the folder of the clips; by default `audio` next to the file's folder.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: a file that cannot be read or lacks columns, or faulty rows, see `load_checks.collect`, including
            those whose label had another target in an earlier row.
    """
    path = Path(path)
    rows = read_csv(path, COLUMNS, "ESC-50")
    targets = _targets(rows)
    choices = tuple(sorted(targets, key=lambda label: (targets[label], label)))
    if len(choices) < 2:
        raise ValueError(f"{path} has the labels {list(choices)}; expected two or more to choose from.")

    def to_question(row: dict[str, Any]) -> Question:
        name, label, target = text_of(row, "filename"), _words(text_of(row, "category")), _target(row)
        if target != targets[label]:
            raise RowFault(FIELD, f"{label!r} has the target {target}, but {targets[label]} in an earlier row")
        kind = {"kind": KIND_OF[label]} if label in KIND_OF else {}
        clip = clip_of(audio_root or path.absolute().parents[1] / "audio", name)
        groups = {"label": label, **kind, **groups_of(row, ("fold",))}
        return Question(id=name, audio=(clip,), question=ASK, choices=choices, answer=label, groups=groups)

    return collect("esc-50", path, rows, to_question, {path.name: file_sha256(path)}, on_error)


def _targets(rows: list[Row]) -> dict[str, int]:
    """The target of each label, from its first row with a valid one."""
    targets: dict[str, int] = {}
    for _, row in rows:
        try:
            targets.setdefault(_words(text_of(row, "category")), _target(row))
        except RowFault:
            continue  # reported when its question is built
    return targets


def _target(row: dict[str, Any]) -> int:
    text = text_of(row, "target")
    if not text.isdecimal():
        raise RowFault(FIELD, f"'target' is {text!r}, expected a whole number")
    return int(text)


def _words(category: str) -> str:
    return category.strip().replace("_", " ")
