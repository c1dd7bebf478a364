"""How a set is read: the format that fits its columns, what they hold, and the prompt if rows only have answers.

Nothing is guessed silently. If several columns could be the answer to learn (such as a transcript and a label), the
set's entry must say which; if no format fits, the error names the nearest, what the set lacks, and the `columns` to
write.
Run: `reading = choose(rows, columns={"text": "utterance"})`
"""

import difflib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Audio, ClassLabel, Dataset

from .chats import clips_of
from .formats import AUDIO, FORMATS, KNOWN, MANIFEST, OF_ANSWERS, OF_QUESTIONS, SEGMENT, Format
from .json_features import OF_LISTS
from .options import listed
from .segments import Segment
from .signs_of_sound import is_given, looks_like_sound


Found = dict[str, tuple[str, ...]]  # what rows hold -> the columns that can hold it
SHOWN = 3  # labels that an error shows
NO_NAMES = (
    "the set has no names for such numbers, unlike a `ClassLabel` of `datasets`. Write the names into a column, and "
    "name that column in the set's entry: `columns: {label: COLUMN}`"
)
UNKNOWN = "COLUMN"  # in the error's advice if no column is likely


@dataclass(frozen=True)
class Reading:
    """
    How a set is read.

    Attributes:
        format: the chosen one.
        columns: the set's columns, by what they hold; without those of clips.
        clips: the columns of clips.
        prompts: the possible questions about each row; empty if rows have their own.
        is_default: whether that is the format's default.
        labels: the names of a `ClassLabel`.
        others: columns that are not read.
        elsewhere: subfolders that hold files of the set, from which relative paths could also start.
    """

    format: Format
    columns: dict[str, str]
    clips: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    is_default: bool = False
    labels: tuple[str, ...] | None = None
    others: tuple[str, ...] = ()
    elsewhere: tuple[Path, ...] = ()

    @property
    def several(self) -> str | None:
        """The column of lists, of which each element is an example."""
        return self.columns[self.format.several] if self.format.several else None

    @property
    def read(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.clips, *self.columns.values())

    def chat(self, row: Mapping[str, Any], number: int, part: int | None = None) -> list[dict[str, Any]]:
        """
        The messages of a row, with clips of its columns not yet at their places.

        Args:
            row: from the set.
            number: its number in the set, from which the prompt is drawn.
            part: which example of the row, if it has several.

        Raises a `ValueError` if the row does not fit the format.
        """
        self._check_all_is_read(row)
        held = {AUDIO: self.clips} | {name: row.get(column) for name, column in self.columns.items()}
        if self.format.several and part is not None:
            held[self.format.several] = self._part(held[self.format.several], part)
        if "label" in held:
            held["label"] = self._label_name(held["label"])
        return self.format.chat(held, self._asked(number, part))

    def clips_of(self, row: Mapping[str, Any]) -> list[Any]:
        """
        The clips of a row's columns, or the segments of them that the row names.

        Raises a `ValueError` if two columns have clips, a required clip is missing, or a time is invalid.
        """
        offset, duration = self._times(row)
        clips = clips_of(row, self.clips)
        if not clips and self.format.answers:
            raise ValueError(f"the row has no audio: {' and '.join(self.clips)} is empty. Leave the row out")
        if clips and duration == 0:
            raise ValueError(
                f"its `{self.columns['duration']}` is 0 seconds, so there is nothing to hear. Leave the row out, or "
                "write -1 to hear the file up to its end"
            )
        return clips if offset is duration is None else [_segment(clip, offset or 0.0, duration) for clip in clips]

    def times_of(self, row: Mapping[str, Any]) -> list[str]:
        """The columns in which a row has an offset or a duration. Raises a `ValueError` if a time is invalid."""
        return [self.columns[name] for name, time in zip(SEGMENT, self._times(row)) if time is not None]

    def __str__(self) -> str:
        what = f"{self.format.name} ({', '.join(self.read)})"
        if not self.prompts:
            return what
        one = f"one of {len(self.prompts)} prompts, such as " if len(self.prompts) > 1 else ""
        return f"{what}, asked {one}{self.prompts[0]!r}{' (the default of `prompt`)' if self.is_default else ''}"

    def _times(self, row: Mapping[str, Any]) -> list[float | None]:
        return [_seconds(row, name, self.columns.get(name)) for name in SEGMENT]

    def _check_all_is_read(self, row: Mapping[str, Any]):
        left = next((name for name in self.format.options if name not in self.read and is_given(row.get(name))), None)
        if left:
            options, asked = listed(row[left]), str(row.get(self.columns["query"]))
            if options is None or not all(_names(asked, option) for option in options):
                raise ValueError(
                    f"the row has {left!r}, which its question does not name. Write them there, too, or leave the column "
                    "out"
                )

    def _part(self, parts: Any, part: int) -> Any:
        if not parts:
            raise ValueError(f"its `{self.several}` is empty, so there is nothing to learn. Leave the row out")
        return parts[part]

    def _asked(self, number: int, part: int | None) -> str:
        """Drawn from the row's number only: the same in each epoch and run, and unrelated to the order of the rows."""
        return random.Random(f"{number} {part or 0}").choice(self.prompts) if self.prompts else ""

    def _label_name(self, value: Any) -> Any:
        if not _is_number(value):
            return value
        if self.labels is None:
            raise ValueError(f"its `{self.columns['label']}` is {value}; {NO_NAMES}")
        if not 0 <= value < len(self.labels):
            raise ValueError(
                f"its `{self.columns['label']}` is {value}; the set has names for 0 to {len(self.labels) - 1}"
            )
        return self.labels[value]


def choose(
    rows: Dataset,
    columns: Mapping[str, str] | None = None,
    prompt: str | Sequence[str] | None = None,
    sound: bool | str = True,
) -> Reading:
    """
    How a set is read.

    Args:
        rows: the set.
        columns: of its entry: the column of each of `ROLES`, if that is not one of `KNOWN`.
        prompt: of its entry: the question if rows only have answers. If there are several, one is drawn for each row.
        sound: of its entry, see `DataSource`.

    Raises a `ValueError` if the set fits no format or several, lacks a column, or if the prompt is missing or would
    not be used. The message continues a sentence that starts with the set's name.
    """
    names, given = rows.column_names, dict(columns or {})
    missing = [column for column in given.values() if column not in names]
    if missing:
        raise ValueError(f"has the columns {', '.join(names)}; its entry's `columns` name {', '.join(missing)}")
    found = {layout.name: _find(layout, names, given) for layout in FORMATS}
    fitting = [
        layout for layout in FORMATS if not _lacking(layout, found[layout.name], sound) and _has_place(layout, given)
    ]
    if not fitting:
        raise ValueError(_nearest(rows, found, given, sound))
    if fitting[0].answers and not any(name in given for name in fitting[0].needs):
        _check_answers([found[layout.name][name] for layout in fitting for name in layout.needs], fitting, names)
    return _reading(rows, fitting[0], found[fitting[0].name], given, prompt)


def _find(layout: Format, names: Sequence[str], given: Mapping[str, str]) -> Found:
    """The columns for each value that a format reads; there should be one each, except for clips."""
    known = KNOWN | {AUDIO: layout.clips} | {name: (name,) for name in SEGMENT}
    here = {name: tuple(column for column in known[name] if column in names) for name in known}
    here |= {name: (column,) for name, column in given.items()}
    # A duration only says how long a clip is, unless there is an offset too or the set is a manifest.
    if "duration" not in given and not here["offset"] and here[AUDIO] != (MANIFEST,):
        here["duration"] = ()
    return {name: here[name] for name in (AUDIO, *layout.needs, *layout.takes, *SEGMENT) if here[name]}


def _lacking(layout: Format, found: Found, sound: bool | str) -> list[str]:
    needs_clips = layout.answers or sound is True and not layout.inside
    return [name for name in (*([AUDIO] if needs_clips else []), *layout.needs) if name not in found]


def _has_place(layout: Format, given: Mapping[str, str]) -> bool:
    return given.keys() <= {AUDIO, *layout.needs, *layout.takes, *SEGMENT}


def _check_answers(answers: Sequence[tuple[str, ...]], fitting: Sequence[Format], names: Sequence[str]):
    """Raises a `ValueError` if another column of a set could be the answer to learn, or be part of a question."""
    ways = [_as_entry({layout.needs[0]: column}) for layout, found in zip(fitting, answers) for column in found]
    if len(ways) > 1:
        raise ValueError(
            f"has the columns {', '.join(names)}, of which several could be the answer. Write into its entry "
            f"which one is: {' or '.join(ways)}"
        )
    others = [column for column in OF_QUESTIONS if column in names]
    if others:
        query = next((column for column in others if column not in OF_ANSWERS), answers[0][0])
        response = next((column for column in others if column in OF_ANSWERS), answers[0][0])
        raise ValueError(
            f"has the columns {', '.join(names)}. If `{query}` is the question, write "
            f"{_as_entry({'query': query, 'response': response})} into its entry; if only `{answers[0][0]}` should be "
            f"read, {ways[0]}"
        )


def _reading(
    rows: Dataset, layout: Format, found: Found, given: Mapping[str, str], prompt: str | Sequence[str] | None
) -> Reading:
    columns = {name: column[0] for name, column in found.items() if name != AUDIO}
    twice = next((name for name in columns if len(found[name]) > 1), None)
    if twice:
        ways = " or ".join(_as_entry({twice: column}) for column in found[twice])
        raise ValueError(f"has the columns {' and '.join(found[twice])}. Write into its entry which to read: {ways}")
    feature = rows.features.get(columns.get("label", ""))
    labels = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    some = (
        _some_labels(rows, columns["label"], "label" in given)
        if labels is None and "label" in columns
        else labels or ()
    )
    clips = found.get(AUDIO, ())
    others = tuple(name for name in rows.column_names if name not in (*clips, *columns.values()))
    prompts = _prompts(layout, prompt, some)
    return Reading(layout, columns, clips, prompts, layout.answers and prompt is None, labels, others)


def _prompts(layout: Format, prompt: str | Sequence[str] | None, labels: Sequence[str]) -> tuple[str, ...]:
    if not layout.answers:
        if prompt is not None:
            raise ValueError(f"is read as {layout.name}, whose rows have questions; leave out its entry's `prompt`")
        return ()
    given = layout.prompt if prompt is None else prompt
    if given is None:
        some = ", ".join(repr(label) for label in labels[:SHOWN])
        raise ValueError(
            f"has labels ({some}, ...), but no question. Write the question into its entry, such as "
            "`prompt: \"Which animal is heard?\"` in a recipe (for check-data: `--prompt '...'`)"
        )
    return (given,) if isinstance(given, str) else tuple(given)


def _some_labels(rows: Dataset, column: str, is_named: bool) -> tuple[str, ...]:
    """A set's first labels. Raises a `ValueError` for numbers, and texts like them if the entry names no column."""
    labels = [row[column] for row in rows.select(range(min(SHOWN, len(rows)))) if is_given(row[column])]
    numbers = [label for label in labels if _is_number(label)]
    if numbers:
        raise ValueError(f"has the label {numbers[0]} in `{column}`; {NO_NAMES}")
    if labels and not is_named and all(map(_is_like_a_number, labels)):  # as in tables
        raise ValueError(
            f"has the labels {', '.join(map(str, labels))} in `{column}`, which can be class numbers. Write into its "
            f"entry the column with the names, or this one if these are the answers: {_as_entry({'label': column})}"
        )
    return tuple(dict.fromkeys(map(str, labels)))


def _names(text: str, option: str) -> bool:
    """Whether a text has an option as a word or words of its own."""
    return bool(re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.IGNORECASE))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_like_a_number(value: Any) -> bool:
    """Also `1.0`, which pandas writes for a 1 in a column with empty cells."""
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _nearest(rows: Dataset, found: Mapping[str, Found], given: Mapping[str, str], sound: bool | str) -> str:
    """The error message for a set that fits no format."""
    names, row = rows.column_names, rows[0]
    sounds = [name for name in names if _holds_sound(rows, name, row[name]) and name not in given.values()]
    layout = max(FORMATS, key=lambda layout: _nearness(layout, found[layout.name], given, names, sounds, sound))
    own = found[layout.name]
    lacking = _lacking(layout, own, sound)
    if AUDIO not in (*own, *lacking) and sounds:
        lacking = [AUDIO, *lacking]
    needs = [*([AUDIO] if AUDIO in (*own, *lacking) else []), *layout.needs]
    no_place = [name for name in given if not _has_place(layout, {name: given[name]})]
    wrong = f"has no `{no_place[0]}`" if no_place else f"lacks {' and '.join(f'`{name}`' for name in lacking)}"
    advice = _proposal(row, own, lacking, sounds, given)
    option = ",".join(f"{name}={column}" for name, column in advice.items())
    return (
        f"has the columns {', '.join(names)}, which fit no format. The nearest is {layout.name} "
        f"({' and '.join(f'`{name}`' for name in needs)}); the set {wrong}. Write into the set's entry what a column "
        f"holds, such as {_as_entry(advice)} (`check-data --columns '{option}'`). All formats are in docs/formats.md"
    )


def _proposal(
    row: Mapping[str, Any], own: Found, lacking: Sequence[str], sounds: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """What the entry's `columns` could be: columns with a name like the missing one's, or with a value of its type."""
    free = [name for name in row if name not in (*sum(own.values(), ()), *sounds)]
    columns = dict(given)
    for name in lacking:
        others = [one for one in free if isinstance(row[one], list if name in OF_LISTS else str)]
        likely = sounds if name == AUDIO else _near(name, free) or others
        columns[name] = next((one for one in likely if one not in columns.values()), UNKNOWN)
    return columns


def _holds_sound(rows: Dataset, name: str, value: Any) -> bool:
    return isinstance(rows.features[name], Audio) or looks_like_sound(name, value)


def _nearness(
    layout: Format,
    found: Found,
    given: Mapping[str, str],
    names: Sequence[str],
    sounds: Sequence[str],
    sound: bool | str,
) -> tuple[float, ...]:
    """A format's columns that exist, plus half for similar names, minus missing ones; in a tie, answers only win."""
    lacking = [name for name in _lacking(layout, found, sound) if not (name == AUDIO and sounds)]
    similar = sum(bool(_near(name, names)) for name in lacking if name != AUDIO)
    there = sum(name in found for name in layout.needs)
    return _has_place(layout, given), there + 1.5 * similar - len(lacking), layout.answers


def _near(name: str, columns: Sequence[str]) -> list[str]:
    """The columns whose names are similar to a known one, or contain one."""
    known = KNOWN.get(name, ())
    return [
        column
        for column in columns
        if difflib.get_close_matches(column.lower(), known, cutoff=0.8)
        or set(re.split(r"[\W_]+", column.lower())) & {*known}
    ]


def _as_entry(columns: Mapping[str, str]) -> str:
    as_yaml = yaml.safe_dump(
        dict(columns), default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    )
    return f"`columns: {as_yaml.strip()}`"


def _segment(clip: Any, offset: float, duration: float | None) -> Segment:
    return Segment(
        (clip.get("bytes") or clip.get("path") or clip) if isinstance(clip, dict) else clip, offset, duration
    )


def _seconds(row: Mapping[str, Any], name: str, column: str | None) -> float | None:
    """A row's time, also from a text of a table; `None` if it is not given, such as a duration of -1 in NeMo."""
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if name == "duration" and seconds == -1:
        return None
    if not 0 <= seconds < math.inf:
        raise ValueError(f"its `{column}` must be seconds, 0 or more, got {value!r}")
    return seconds
