"""What looks like audio, or like the place of a clip: names of columns, file names, and tags in texts.

Only `TAG` is the place of a clip. What other programs write for it differs in every way, so anything that looks like
it is refused: as text, it would be learned, and the clip would be put somewhere else.
"""

import re


TAG = "<audio>"
# What PyAV and soundfile read, and people have.
ENDINGS = (
    "wav|wave|mp3|mp2|mpga|flac|ogg|oga|opus|spx|m4a|m4b|mp4|aac|adts|webm|weba|mka|mkv|mov|3gp|3g2|amr|awb|wma|asf|"
    "aif|aiff|aifc|caf|snd|w64|rf64|wv|ape|ac3|gsm|sph"
)
SOUND_FILE = re.compile(rf"\.(?:{ENDINGS})(?:[?#]\S+)?$", re.IGNORECASE)  # also in a signed URL
SOUND_NAME = re.compile(rf"audio|sound|speech|voice|recording|wav|clip|file_?name|^(?:{ENDINGS})$", re.IGNORECASE)
RATE_NAME = re.compile(r"sampl\w*rate|frame_?rate|^(?:rate|sr|fs)$", re.IGNORECASE)  # of samples, in Hz

_SOUND = "audio|sound|speech"
# Whole words: "invoice", "microwave" and "intermediate" are none of them.
_MEDIA = rf"{_SOUND}|image|video|(?<![a-z])(?:voice|music|media|clip|recording|wav)s?(?![a-z])|\.(?:{ENDINGS})\b"
# A tag of one word, without its brackets: ` |audio_1| `, `/sound`, `audio 2/`.
_INSIDE = r"[^\w<>\n:.-]{{0,9}}[\w:.-]{{0,80}}(?:{})[\w:.-]{{0,80}}(?:\s+\d+)?[^\w<>\n:.-]{{0,9}}"
_ENDS = r"(?=[^<>\n]*+>)"  # so that a long text after a `<` is looked at once

# In any text.
SOUND_TAG = re.compile(f"<{_ENDS}{_INSIDE.format(_SOUND)}>", re.IGNORECASE)
# In the texts of a row with clips in its columns also `<video>`, `<audio src="a.wav">`, `<your clip here>`,
# `&lt;audio&gt;`, `[audio 1]`, `{audio}` and `[sound:a.wav]`. "I <3 music > all" has none.
ANY_TAG = re.compile(
    rf"<{_ENDS}(?:{_INSIDE.format(_MEDIA)}>|(?![\s\d=-])[^<>\n]*(?:{_MEDIA})[^<>\n]*>)"
    rf"|(?:&lt;|＜){_INSIDE.format(_SOUND)}(?:&gt;|＞)"
    r"|[\[{]{1,2}[\s|_/]{0,9}(?:\w{0,80}audio\w{0,80}|sound(?=:))[\s|_/#.\d-]{0,9}(?::[^\[\]{}\n]*+)?[\]}]{1,2}",
    re.IGNORECASE,
)


def other_tag(text: str, has_clips: bool) -> str | None:
    """The first tag in a text that looks like a clip's place and is not `TAG`."""
    # No tag spans a line break.
    found = (ANY_TAG if has_clips else SOUND_TAG).search(text.replace(TAG, "\n"))
    return found.group() if found else None
