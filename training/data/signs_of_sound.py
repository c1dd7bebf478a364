"""What looks like audio, or like the place of a clip: names of columns, file names, and tags in texts.

Only `TAG` is the place of a clip. What other programs write for it differs in every way, so where a clip has no place,
anything that looks like it is refused: as text, it would be learned, and the clip would be put somewhere else.
"""

import re
from typing import Any


TAG = "<audio>"
# What PyAV and soundfile read, and people have.
ENDINGS = (
    "wav|wave|mp3|mp2|mpga|flac|ogg|oga|opus|spx|m4a|m4b|mp4|aac|adts|webm|weba|mka|mkv|mov|3gp|3g2|amr|awb|wma|asf|"
    "aif|aiff|aifc|caf|snd|w64|rf64|wv|ape|ac3|gsm|sph"
)
SOUND_FILE = re.compile(rf"\.(?:{ENDINGS})(?:[?#]\S+)?$", re.IGNORECASE)  # also in a signed URL
SOUND_NAME = re.compile(r"audio|sound|wav|clip|file_?name", re.IGNORECASE)
# Also of text columns, such as `speech_act`, `recording_date` and `mov`: only the value tells.
UNSURE_NAME = re.compile(rf"(?<![a-z])(?:voice|speech|recording)s?(?![a-z])|^(?:{ENDINGS})$", re.IGNORECASE)
RATE_NAME = re.compile(r"sampl\w*rate|frame_?rate|^(?:rate|sr|fs)$", re.IGNORECASE)  # of samples, in Hz

_SOUND = "audio|sound|speech"
# Whole words: "invoice", "microwave" and "intermediate" are none of them.
_MEDIA = rf"{_SOUND}|image|video|(?<![a-z])(?:voice|music|media|clip|recording|wav)s?(?![a-z])|\.(?:{ENDINGS})\b"
# A tag of one word, without its brackets: ` |audio_1| `, `/sound`, `audio 2/`.
_INSIDE = r"[^\w<>\n:.-]{{0,9}}[{0}]{{0,80}}(?:{1})[{0}]{{0,80}}(?:\s+\d+)?[^\w<>\n:.-]{{0,9}}"
_NAME, _WORD = r"\w:-", r"\w:.-"
_ENDS = r"(?=[^<>\n]*+>)"  # so that a long text after a `<` is looked at once

# In any text. `vector<AudioFile>` and `#include <SoundFile.h>` are code.
SOUND_TAG = re.compile(rf"(?:(?<![A-Za-z0-9_])|(?=<\W))<{_ENDS}{_INSIDE.format(_NAME, _SOUND)}>", re.IGNORECASE)
# In the texts of a row with a clip that has no place also `<video>`, `<audio src="a.wav">`, `<your clip here>`,
# `&lt;audio&gt;`, `[audio 1]`, `{audio}` and `[sound:a.wav]`. "I <3 music > all" has none.
ANY_TAG = re.compile(
    rf"<{_ENDS}(?:{_INSIDE.format(_WORD, _MEDIA)}>|(?![\s\d=-])[^<>\n]*(?:{_MEDIA})[^<>\n]*>)"
    rf"|(?:&lt;|＜){_INSIDE.format(_WORD, _SOUND)}(?:&gt;|＞)"
    r"|[\[{]{1,2}[\s|_/]{0,9}(?:\w{0,80}audio\w{0,80}|sound(?=:))[\s|_/#.\d-]{0,9}(?::[^\[\]{}\n]*+)?[\]}]{1,2}",
    re.IGNORECASE,
)


def other_tag(text: str, all_placed: bool) -> str | None:
    """
    The first tag that looks like a clip's place, in a text without `TAG`.

    If each clip has its place, only a tag of one word is taken for another's: `<sound event>, <time>` and
    `{audio: ...}` are forms of answers.
    """
    found = (SOUND_TAG if all_placed else ANY_TAG).search(text)
    return found.group() if found else None


def looks_like_sound(key: str, value: Any, inside: bool = False) -> bool:
    """
    Whether a column looks like audio, by its name or its value.

    Args:
        key: the name.
        value: a row's.
        inside: whether it is a part of a column, as `audio_id` in `{"meta": {"audio_id": 7}}`: then a name alone says
            too little.
    """
    if isinstance(value, (list, tuple)) and not is_samples(value):
        return any(looks_like_sound(key, part, inside) for part in value)
    if isinstance(value, dict) and any(looks_like_sound(name, part, True) for name, part in value.items()):
        return True
    if isinstance(value, str) and SOUND_FILE.search(value):
        return True
    named = SOUND_NAME.search(key)
    if named and not inside:
        return is_given(value)
    return bool(named or UNSURE_NAME.search(key)) and _could_be_sound(value)


def _could_be_sound(value: Any) -> bool:
    """Whether it is bytes, samples or an object with them; file names are noticed under any name."""
    if isinstance(value, dict):
        return is_given(value) and not {"bytes", "array"}.isdisjoint(value)  # with a path, the bytes can be None
    if isinstance(value, str):
        return value.startswith("data:audio/")
    return is_given(value) and (isinstance(value, (bytes, bytearray)) or is_samples(value))


def is_samples(clip: Any) -> bool:
    return isinstance(clip, list) and bool(clip) and isinstance(clip[0], (int, float))


def is_given(value: Any) -> bool:
    """Whether there is a value; Arrow gives an empty struct for a key that only another row has."""
    if isinstance(value, dict):
        return any(is_given(part) for part in value.values())
    return bool(len(value)) if hasattr(value, "__len__") else value is not None and value is not False
