"""The questions of a benchmark as rows for lmms-eval, and the prompt of each; tasks/ and benchmark_task.py call this.

Environment variables name a benchmark's file: FALCON3_AUDIO_MMAU for "mmau", FALCON3_AUDIO_MMAU_PRO for "mmau-pro" and
so on; with _AUDIO_ROOT appended, they name the folder of the clips, unless these are where the loaders expect them.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..benchmarks import BENCHMARKS
from ..prompts import PROMPTS
from ..questions import Question, QuestionSet


TASKS = (
    "task",
    "modality",
    "category",
    "label",
)  # the groups that metrics are averaged over: the first that a question has


def load(benchmark: str) -> QuestionSet:
    """
    The questions of a benchmark from the file that the environment names.

    Raises:
        `ValueError`: no such variable, or as the benchmark's loader does.
    """
    variable = "FALCON3_AUDIO_" + benchmark.upper().replace("-", "_")
    path = os.environ.get(variable)
    if not path:
        raise ValueError(
            f"the environment variable {variable} is not set; set it to the file that `falcon3-audio evaluate` reads "
            f"for {benchmark}, and {variable}_AUDIO_ROOT to the folder of its clips if they are elsewhere."
        )
    root = os.environ.get(f"{variable}_AUDIO_ROOT")
    return BENCHMARKS[benchmark].load(path, audio_root=Path(root) if root else None)


WITHOUT_OPEN = "without-open"  # `dataset_name` of a task whose name says that it has no open questions


def without_open(questions: QuestionSet) -> QuestionSet:
    """The questions that rules can score: those with options, and those with a check."""
    kept = tuple(question for question in questions.questions if question.choices or question.check is not None)
    return replace(questions, questions=kept)


def row_of(question: Question) -> dict[str, Any]:
    """
    A question as a row of lmms-eval's data, without its audio. `check` is JSON, and empty if there is none.

    Raises:
        `ValueError`: an open question, or one whose answer is withheld; neither can be scored here.
    """
    if question.check is None and (question.answer is None or not question.choices):
        raise ValueError(
            f"question {question.id} has no {'options' if question.answer else 'answer'}; lmms-eval scores multiple "
            "choice with known answers only. `falcon3-audio evaluate` writes the replies to other questions."
        )
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer or "",
        "check": "" if question.check is None else json.dumps(question.check),
        "task": next((question.groups[name] for name in TASKS if name in question.groups), ""),
        "clip": " ".join(clip.name for clip in question.audio),
    }


def doc_to_text(doc: dict[str, Any], options: dict[str, str]) -> str:
    """The prompt for the model; `options["prompt"]` is a name in `prompts.PROMPTS`."""
    return PROMPTS[options["prompt"]](Question(doc["id"], (), doc["question"], tuple(doc["choices"]), doc["answer"]))
