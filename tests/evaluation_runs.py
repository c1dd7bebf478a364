"""Questions about small clips, a model whose replies depend on clips and words, and runs that are killed."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
from child import in_child
from tiny import SAMPLING_RATE, tone

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor
from falcon3_audio.evaluation.predictions import PREDICTIONS, RUN
from falcon3_audio.evaluation.questions import Clip, Question, QuestionSet


def make_telling(checkpoint: str, folder: Path) -> str:
    """A checkpoint with large weights, whose replies depend on every clip and word, and are letters only."""
    model = Falcon3AudioForConditionalGeneration.from_pretrained(checkpoint)
    processor = Falcon3AudioProcessor.from_pretrained(checkpoint)
    torch.manual_seed(0)
    towers = (model.model.audio_tower, model.model.multi_modal_projector)
    for part in (model.model.language_model, model.lm_head, *towers):
        for weight in part.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, weight[0].numel() ** -0.5 if part in towers else 0.3)
    model.model.language_model.embed_tokens.weight.data.normal_(0, 1)
    words = processor.tokenizer.batch_decode([[index] for index in range(model.config.text_config.vocab_size)])
    unwanted = [index for index, word in enumerate(words) if not (word.isascii() and word.isalpha())]
    model.generation_config.suppress_tokens = unwanted
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make_questions(folder: Path, asked: str) -> QuestionSet:
    """A question for each letter of `asked`, about the clip of that name; a capital letter's clip is not audio."""
    folder.mkdir(exist_ok=True)
    questions = []
    for number, letter in enumerate(asked):
        path = folder / f"{letter}.wav"
        if letter.isupper():
            path.write_bytes(b"RIFF no sound")
        else:
            pitch = 300 + 200 * (ord(letter) - ord("a"))
            soundfile.write(path, tone(0.3 + pitch / 5000, pitch), SAMPLING_RATE)
        question = Question(
            id=f"q{number}",
            audio=(Clip.from_file(path, letter),),
            question=f"What is it, {number}?",
            choices=("a dog", "a bell"),
            answer="a dog",
            groups={"task": "sound"},
        )
        questions.append(question)
    return QuestionSet("jsonl", tuple(questions), {"asked.jsonl": "0" * 64}, {"no audio": ["q99"]})


def rows_of(output: Path) -> dict[str, dict]:
    """The rows of the predictions, by id."""
    rows = [json.loads(line) for line in (output / PREDICTIONS).read_text().splitlines()]
    return {row["id"]: row for row in rows}


def run_of(output: Path) -> dict:
    return json.loads((output / RUN).read_text())


def killed_while(work: Callable[[], object], lines: int):
    """Runs `work` in a child that is killed after writing that many lines and half of the next one."""

    def child():
        sync, left = os.fsync, [lines]

        def kill(descriptor):
            sync(descriptor)
            left[0] -= 1
            if left[0] == 0:
                os.write(descriptor, b'{"outcomes": [{"id": "q')
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = kill
        work()

    assert in_child(child) == -signal.SIGKILL
