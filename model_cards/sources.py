"""What a card says about work of others: licences and languages of base models, and the training sets of the recipes.

Everything here was read at its source, which each entry names. A base model that is not listed is not guessed about: its
card links the model's own page.
"""

from dataclasses import dataclass

from huggingface_hub.utils import HFValidationError, validate_repo_id


@dataclass(frozen=True)
class Licence:
    """
    Attributes:
        name: in words.
        link: where its text is.
        metadata: `license`, and for a licence the Hub has no identifier of, `license_name` and `license_link`.
        note: what else a reader should know.
    """

    name: str
    link: str
    metadata: dict[str, str]
    note: str = ""


_FALCON_LINK = "https://falconllm.tii.ae/falcon-terms-and-conditions.html"
FALCON = Licence(
    "Falcon LLM licence",
    _FALCON_LINK,
    {"license": "other", "license_name": "falcon-llm-license", "license_link": _FALCON_LINK},
    "it has terms of use and of attribution that also bind whoever passes on models made from Falcon3",
)
WHISPER = Licence(
    "MIT",
    "https://github.com/openai/whisper/blob/main/LICENSE",
    {"license": "mit"},
    "as OpenAI's repository says of code and weights; the pages of the weights on the Hub say Apache-2.0",
)
APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", {"license": "apache-2.0"})

TINY = "/training/tiny_backbones/"  # this project's own
# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
_LICENCES = {
    "/tiiuae/Falcon3-": FALCON,
    "/openai/whisper-": WHISPER,
    "/HuggingFaceTB/SmolLM2-": APACHE,
    TINY: APACHE,
}
# https://huggingface.co/tiiuae/Falcon3-7B-Instruct
FALCON_LANGUAGES = ("en", "fr", "es", "pt")


@dataclass(frozen=True)
class Dataset:
    """
    One training set.

    Attributes:
        name: what it is called.
        description: Markdown, one sentence or more.
        hub_id: where it is on the Hub, or `None`.
    """

    name: str
    description: str
    hub_id: str | None = None


REAL_SOUNDS = "data/real_sounds"


def _real_sounds(domain: str) -> Dataset:
    return Dataset(
        f"Real recordings, {domain}",
        "questions about recordings of free Debian packages, made by `falcon3-audio real-sounds`; the packages are listed below.",
    )


# By the path that the recipes in training/recipes read.
DATASETS = {
    # Rows and clips: as counted in the published annotation files. Method: https://arxiv.org/abs/2309.14405, section 3.
    "data/open_asqa": Dataset(
        "Open-ASQA",
        "questions and answers about sounds, music and speech from "
        "[LTU-AS](https://arxiv.org/abs/2309.14405), 10,324,230 rows on 1,089,204 clips in its second version as published. "
        "The annotations are public; the audio is from AudioSet, VGGSound, FSD50K, Clotho, FMA, LibriTTS, VoxCeleb2 "
        "and others, each under its own terms. Most open questions and answers were written by GPT-3.5 from labels "
        "and captions, which it could not check by listening.",
    ),
    # The size is the paper's; text source, voices and synthesiser are this project's choice.
    "data/voice_instructions": Dataset(
        "Voice instructions",
        "a text instruction set spoken by a synthesiser (`falcon3-audio voice-instructions`). The paper used 440K "
        "samples and published neither the text source nor the voices, so these are not the same ones.",
    ),
    "runs/demo/data": Dataset(
        "Audio world",
        "synthetic sounds with questions that have one right answer, made by "
        "`python -m falcon3_audio.training.world.audio_world`: words spoken by espeak-ng, sound events and music.",
    ),
    **{f"{REAL_SOUNDS}/train_{domain}.jsonl": _real_sounds(domain) for domain in ("speech", "sound", "music")},
}


def licence_of(base: str) -> Licence | None:
    """
    The licence of a base model.

    Args:
        base: Hub id, or a path.

    Returns the licence if it is known here; for any other Hub id one that only links the model's page; `None` for
    other local folders.
    """
    known = next((licence for start, licence in _LICENCES.items() if start in f"/{base}"), None)
    if known or not is_hub_id(base):
        return known
    page = f"https://huggingface.co/{base}"
    metadata = {"license": "other", "license_name": "license-of-the-base-model", "license_link": page}
    return Licence("see its page", page, metadata)


def is_english_encoder(name: str) -> bool:
    """Whether a Whisper hears English alone: published ones have it in their names; the tiny one knows no other words."""
    return name.endswith(".en") or TINY in f"/{name}"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ORG/NAME of a Hub id. A relative path of two parts has it too."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith(".")


__all__ = [
    "APACHE",
    "DATASETS",
    "FALCON",
    "FALCON_LANGUAGES",
    "REAL_SOUNDS",
    "TINY",
    "WHISPER",
    "Dataset",
    "Licence",
    "is_english_encoder",
    "is_hub_id",
    "licence_of",
]
