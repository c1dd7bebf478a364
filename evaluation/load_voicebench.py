"""VoiceBench's open requests (github.com/MatthewCYM/VoiceBench, hlt-lab/voicebench on the Hub) as published: parquet.

Spoken requests to an assistant, with open answers. The folder of a subset has `SPLIT-*.parquet`: `test`, or an accent
or a voice; each row has `audio`, `prompt`, which is the transcript, and in `sd-qa` a `reference`. As published, the
model gets only the audio; the transcript is for the judge. Published scores are GPT-4o-mini's: 1 to 5, and for `sd-qa`
right or wrong. `falcon3-audio judge` uses this project's prompts, with 1 to 5 for all subsets, so its numbers differ.
Not supported: `mmsu`, `openbookqa` and `bbh` (the options are spoken, and the published rules draw or read letters),
`ifeval` (Google's checks, not MMAU-Pro's), `advbench` (a list of refusals) and `mtbench` (several turns).
Run: `load_voicebench("voicebench/alpacaeval")`
"""

from pathlib import Path
from typing import Any

from .load_checks import OnError, Row, Source, collect, text_of
from .load_parquet import clip_in, open_parquet, split_of, table_rows
from .questions import Question, QuestionSet


AUDIO, PROMPT, REFERENCE = "audio", "prompt", "reference"
# The open subsets, and the columns that each has.
SUBSETS = {
    name: (AUDIO, PROMPT)
    for name in ("alpacaeval", "alpacaeval_full", "alpacaeval_speaker", "commoneval", "wildvoice")
} | {"sd-qa": (AUDIO, PROMPT, REFERENCE)}
ONLY_SPLIT = "test"


def load_voicebench(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    The requests of a subset, with ids "SUBSET/SPLIT/NUMBER", in the group `task`: the subset, with the split if it has
    several.

    Args:
        path: the folder of a subset, by its published name, or one of its parquet files.
        audio_root: must be `None`, since the audio is in the files.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: another folder, files that cannot be read or lack columns, or faulty rows, see
            `load_checks.collect`.
    """
    path = Path(path)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if folder.name not in SUBSETS:
        raise ValueError(
            f"{path} is in a folder {folder.name!r}; expected the name of one of VoiceBench's open subsets: "
            f"{', '.join(SUBSETS)}."
        )
    rows, clip, sha256 = _read(path, folder.name, audio_root)

    def to_question(row: dict[str, Any]) -> Question:
        return Question(
            id=row["id"],
            audio=(clip(row),),
            question=text_of(row, PROMPT),
            answer=text_of(row, REFERENCE) if REFERENCE in SUBSETS[folder.name] else None,
            groups={"task": row["task"]},
        )

    return collect("voicebench", path, rows, to_question, sha256, on_error)


def _read(path: Path, subset: str, audio_root: Path | None) -> Source:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no parquet files; expected VoiceBench's, such as test-00000-of-00001.parquet.")
    rows: list[Row] = []
    tables, sha256, counts = {}, dict[str, str](), dict[str, int]()
    for file in files:
        tables[str(file)], digest = open_parquet(file, SUBSETS[subset], f"VoiceBench's {subset}", audio_root)
        sha256 |= digest
        split = split_of(file)
        for place, row in table_rows(tables[str(file)], AUDIO):
            number = counts[split] = counts.get(split, 0) + 1
            named = {"id": f"{subset}/{split}/{number}", "file": str(file)}
            task = subset if split == ONLY_SPLIT else f"{subset} {split}"
            rows.append((f"{file.name}, {place}", row | named | {"task": task}))
    return rows, lambda row: clip_in(tables[row["file"]], AUDIO, row, row["id"]), sha256


__all__ = ["load_voicebench"]
