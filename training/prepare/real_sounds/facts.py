"""The facts that several readers know about their clips."""

from .clips import Fact
from .tables import sound_table


COUNTS = ("one", "two", "three", "four", "five", "six")
WHAT_IS_SAID = {
    "phrase": ("Which phrase is spoken?", "What does the speaker say?", "Which of these is heard in the clip?"),
    "letter": ("Which letter or syllable is spoken?", "Which letter or syllable does the speaker say?"),
}
TRANSCRIBE = ("Transcribe the speech.", "Write down what is said.")


def language_fact(language: str) -> Fact:
    wordings = ("Which language is spoken?", "What language does the speaker use?", "In which language is this said?")
    return Fact("language", wordings, language, "language")


def text_facts(text: str, language: str, what: str = "phrase") -> list[Fact]:
    """What is said, in the original language; `what` is "phrase" or "letter"."""
    in_test = language == "English"
    choice = Fact(what, WHAT_IS_SAID[what], text, f"{what} {language}", by_length=True, in_test=in_test)
    return [choice, Fact("transcription", TRANSCRIBE, text, in_test=False)]


def meaning_fact(text: str, language: str) -> Fact:
    wordings = (
        f"What does the speaker say in {language}?",
        "What does the speaker say, in English?",
        "What is said, put into English?",
    )
    return Fact("meaning", wordings, text, "meaning", by_length=True)


def speaker_fact(sex: str, language: str) -> Fact:
    return Fact("speaker", ("Who is speaking?", "Who speaks in this clip?"), f"a {sex} speaking {language}", "speaker")


def number_fact(text: str) -> Fact:
    return Fact(
        "number", ("Which number is spoken?", "What number does the speaker say?"), text, "number", in_test=False
    )


def sound_facts(label: str) -> list[Fact]:
    wordings = ("What sound is this?", "What is heard in this clip?", "What makes this sound?", "Identify the sound.")
    facts = [Fact("sound", wordings, label, "sound")]
    if category := sound_table("categories").get(label):
        kinds = ("What kind of sound is this?", "Where does this sound come from?")
        facts.append(Fact("sound category", kinds, category, "sound category", is_open=False))
    return facts


def instrument_facts(label: str) -> list[Fact]:
    wordings = ("Which instrument is this?", "Which instrument is played?", "What instrument do you hear?")
    facts = [Fact("instrument", wordings, label, "instrument")]
    if family := sound_table("families").get(label):
        kinds = ("Which family does the instrument belong to?", "What kind of instrument is it?")
        facts.append(Fact("family", kinds, family, "family"))
    return facts


def count_fact(kind: str, wordings: tuple[str, ...], number: int, numbers: range) -> Fact:
    """A number among four; `numbers` are those that occur."""
    return Fact(kind, wordings, COUNTS[number - 1], options=tuple(COUNTS[n - 1] for n in numbers))
