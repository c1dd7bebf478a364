"""Clips and questions of a training step, with lengths and questions per clip like those of the paper's training mix.

Published per set (LTU-AS's table of Open-ASQA): thousands of clips and of questions. Published overall: 9.2 s per clip
in Open-ASQA, and one question per clip in the 440 K voice instructions. The table with the voice instructions has 5.8
questions per clip; the project counts 5.2, by (clip, source), which shares less. So each set's mean is multiplied
by 5.2 / 5.8.

Assumptions: the spread of questions within a set (1 + Poisson); lengths within a set (uniform between the bounds
below, chosen so that Open-ASQA's mean is 9.2 s; 10 s for clips from 10 s videos and for longer ones); 5 s for a voice
instruction; and texts of 60 tokens, half of them the answer, both between a tenth and nineteen tenths of their mean.
"""

from dataclasses import dataclass

import numpy as np


# set: (thousand clips, thousand questions, shortest and longest clip in seconds)
SETS = {
    "AudioSet-Strong": (102, 1584, 10, 10),
    "AudioSet": (500, 722, 10, 10),
    "VGGSound": (184, 1274, 10, 10),
    "FSD50K": (41, 485, 1, 10),
    "AudioCaps": (46, 575, 10, 10),
    "FreeSound": (91, 882, 1, 10),
    "Clotho": (5, 137, 10, 10),
    "SoundBible": (1.2, 22, 10, 10),
    "speech": (151, 2725, 4, 10),
    "AudioSet, joint": (82, 747, 10, 10),
    "FMA": (93, 489, 10, 10),
    "voice instructions": (440, 440, 2, 8),
}
QUESTIONS_PER_CLIP = 5.2
HEAD_TOKENS = 4  # of the chat format, before the audio
QUESTION_TOKENS, ANSWER_TOKENS = 26, 30  # means; 60 with the head
FRAMES_PER_SECOND = 100
# Mel frames per audio token. All models agree on the number of tokens for multiples of it.
FRAMES_PER_TOKEN = 4
LONGEST = 30  # seconds
# A step is drawn this often, and the draw closest to the mix is taken: a few clips are rarely representative.
DRAWS = 100


@dataclass(frozen=True)
class Question:
    """One question: its clip's number in the step, the clip's mel frames, and text tokens, end token included."""

    clip: int
    frames: int
    question: int
    answer: int

    @property
    def audio_tokens(self) -> int:
        return self.frames // FRAMES_PER_TOKEN

    @property
    def tokens(self) -> int:
        return HEAD_TOKENS + self.audio_tokens + self.question + self.answer


def mean_of_mix() -> tuple[float, float]:
    """Mean (questions, seconds) per clip."""
    clips = sum(count for count, *_ in SETS.values())
    seconds = sum(count * (low + high) / 2 for count, _, low, high in SETS.values())
    return QUESTIONS_PER_CLIP, seconds / clips


def open_asqa_step(questions: int, seed: int = 0) -> list[Question]:
    """`questions` questions of one optimizer step, clip by clip; the last clip gets only the remaining ones."""
    rng = np.random.default_rng(seed)
    draws = [_draw(questions, rng) for _ in range(DRAWS)]
    return min(draws, key=_distance)


def long_clips_step(questions: int, seed: int = 0) -> list[Question]:
    """`questions` clips of 30 s with one question each: nothing to share and no padding to skip."""
    rng = np.random.default_rng(seed)
    frames = LONGEST * FRAMES_PER_SECOND
    return [Question(clip, frames, *_text(rng)) for clip in range(questions)]


def _draw(questions: int, rng: np.random.Generator) -> list[Question]:
    clips = np.array([row[0] for row in SETS.values()])
    means = np.array([row[1] / row[0] for row in SETS.values()])
    means = np.maximum(means * QUESTIONS_PER_CLIP * clips.sum() / (means * clips).sum(), 1)
    bounds = [row[2:] for row in SETS.values()]
    drawn: list[Question] = []
    # No more clips than questions are needed.
    for clip, chosen in enumerate(rng.choice(len(SETS), questions, p=clips / clips.sum())):
        if len(drawn) == questions:
            break
        low, high = bounds[chosen]
        tokens = round(rng.uniform(low, high) * FRAMES_PER_SECOND / FRAMES_PER_TOKEN)
        count = min(1 + rng.poisson(means[chosen] - 1), questions - len(drawn))
        drawn += [Question(clip, tokens * FRAMES_PER_TOKEN, *_text(rng)) for _ in range(count)]
    return drawn


def _text(rng: np.random.Generator) -> tuple[int, int]:
    question, answer = rng.uniform(0.1, 1.9, 2)
    return round(QUESTION_TOKENS * question), round(ANSWER_TOKENS * answer)


def describe(step: list[Question]) -> dict[str, float]:
    """Means of a step: questions and seconds per clip, seconds per question, text tokens per question."""
    frames = {question.clip: question.frames for question in step}
    return {
        "questions": len(step),
        "clips": len(frames),
        "questions per clip": len(step) / len(frames),
        "seconds per clip": float(np.mean(list(frames.values()))) / FRAMES_PER_SECOND,
        "seconds per question": float(np.mean([question.frames for question in step])) / FRAMES_PER_SECOND,
        "text tokens per question": float(np.mean([question.tokens - question.audio_tokens for question in step])),
    }


def _distance(step: list[Question]) -> float:
    """Sum of the relative differences between a step's means and the mix's."""
    found = describe(step)
    questions, seconds = mean_of_mix()
    text = HEAD_TOKENS + QUESTION_TOKENS + ANSWER_TOKENS
    pairs = [
        (found["questions per clip"], questions),
        (found["seconds per clip"], seconds),
        (found["text tokens per question"], text),
    ]
    return sum(abs(value / wanted - 1) for value, wanted in pairs)
