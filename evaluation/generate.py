"""Puts a set of questions to a model and writes what it replied: `predictions.jsonl` and `run.json`.

What is finished is appended to `journal.jsonl` and is on the disk before the next question is asked, so a run that was
killed goes on where it was, asks nothing twice, and ends with the same bytes: batches depend on all the questions and
not on those that are left. A run goes on only with what it was begun with; another model, prompt, file or version is an
error that names what differs. Questions that failed are finished: they are recorded with their error, and scored as
failed. Run: `falcon3-audio evaluate` (evaluate.py).
"""

import fcntl
import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm.auto import tqdm

from falcon3_audio.peak_memory import peak_memory_gib
from falcon3_audio.whole_files import whole_file, write_json

from .answerers import Answerer, Item, Outcome
from .controls import heard
from .orders import in_orders
from .predictions import PREDICTIONS, RUN, Prediction
from .prompts import PROMPTS, Prompt
from .questions import QuestionSet


JOURNAL = "journal.jsonl"


def generate(
    questions: QuestionSet,
    answerer: Answerer,
    output: str | Path,
    prompt: str | Prompt = "plain",
    control: str = "none",
    seed: int = 0,
    shuffled_orders: int = 0,
) -> Counter[str]:
    """
    Asks whatever has not been asked yet, and writes the predictions when nothing is left.

    Args:
        questions: with unique ids.
        output: the folder, new or of the same run.
        prompt: a name in `prompts.PROMPTS`, or one of your own (`prompts.read_prompt`).
        control: a name in `controls.CONTROLS`.
        seed: of the control "shuffled" and of shuffled options.
        shuffled_orders: in how many other orders of their options questions are asked as well, see orders.py.

    Returns:
        How many questions have each status.

    Raises:
        `ValueError`: no questions, an id twice, a question that does not fit the prompt, or another run in `output`.
        `RunStopped`, `EndpointUnavailable`: where going on makes no sense; the same call goes on later.
    """
    output = Path(output)
    prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt, PROMPTS[prompt])
    questions = in_orders(questions, shuffled_orders, seed) if shuffled_orders else questions
    items = _items(questions, prompt, control, seed)
    settings = _settings(questions, items, answerer, prompt, control, seed)
    settings |= {"shuffled_orders": shuffled_orders} if shuffled_orders else {}
    journal = Journal(output, settings)
    try:
        if any(item.heard for item in items) and journal.audio_check is None:
            journal.append({"audio_check": answerer.check_audio()})
        _ask_what_is_left(items, answerer, journal)
    finally:
        journal.close()
    # The predictions last: they are what says that a run is finished.
    write_json(output / RUN, _provenance(items, journal, settings))
    with whole_file(output / PREDICTIONS) as file:
        for item in items:
            row = _row(item, journal.outcomes[item.question.id], control)
            file.write((json.dumps(row) + "\n").encode())
    return Counter(outcome["status"] for outcome in journal.outcomes.values())


class Journal:
    """
    What is finished: a file to which whole lines are appended, each on the disk before `append` returns.

    Attributes:
        outcomes: by question id.
        audio_check: see `Answerer.check_audio`; `None` until it is appended.
        begun: when the first line was written (ISO 8601, UTC).

    Raises:
        `ValueError`: for the journal of a run with other settings, a damaged one, or predictions without one.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.outcomes: dict[str, Outcome] = {}
        self.audio_check: str | None = None
        self.begun: str | None = None
        self._lock = Lock()
        path = folder / JOURNAL
        if not path.exists() and (folder / PREDICTIONS).exists():
            raise ValueError(f"{folder} holds {PREDICTIONS} but no {JOURNAL}; give another --output-dir.")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"Another process writes to {folder}; wait for it, or give another --output-dir."
            ) from None
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            self._read(content[:whole].splitlines(), settings, path)
        except ValueError:
            self.close()
            raise
        self._file.truncate(whole)  # a last line that was cut off
        if not whole:
            self.append({"settings": settings, "begun": datetime.now(UTC).isoformat(timespec="seconds")})

    def append(self, line: dict[str, Any]):
        """`{"outcomes": [...]}` of questions that were finished together, or `{"audio_check": ...}`."""
        with self._lock:
            self._file.write((json.dumps(line) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._take(line)

    def close(self):
        self._file.close()

    def _read(self, lines: Sequence[bytes], settings: dict[str, Any], path: Path):
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                before = content["settings"] if number == 1 else {}
                self._take(content)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is damaged ({error!r}); give another --output-dir."
                ) from None
            changed = differences(before, settings) if number == 1 else []
            if changed:
                raise ValueError(
                    f"{path.parent} holds a run with other settings: {', '.join(changed)}. Give another --output-dir, "
                    "or what that run was begun with."
                )

    def _take(self, line: dict[str, Any]):
        if "settings" in line:
            self.begun = line["begun"]
        elif "audio_check" in line:
            self.audio_check = line["audio_check"]
        else:
            self.outcomes |= {outcome["id"]: outcome for outcome in line["outcomes"]}


def _items(questions: QuestionSet, prompt: Prompt, control: str, seed: int) -> list[Item]:
    if not questions.questions:
        raise ValueError(f"There are no questions in {', '.join(questions.sha256) or 'the set'}.")
    counts = Counter(question.id for question in questions.questions)
    twice = [identity for identity, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids belong to several questions, the first is {twice[0]!r}; expected one each."
        )
    clips = heard(questions.questions, control, seed)
    return [Item(question, prompt.fill(question), played) for question, played in zip(questions.questions, clips)]


def _settings(
    questions: QuestionSet, items: Sequence[Item], answerer: Answerer, prompt: Prompt, control: str, seed: int
) -> dict[str, Any]:
    """All that decides the predictions, as it reads back from JSON."""
    asked = json.dumps([[item.question.id, item.prompt, item.names] for item in items])
    settings = {
        "benchmark": questions.benchmark,
        "data_sha256": questions.sha256,
        "questions_sha256": hashlib.sha256(asked.encode()).hexdigest(),  # ids, prompts and names of clips, in order
        "left_out": questions.left_out,
        "prompt": prompt.name,
        **_own_text(prompt),
        "control": control,
        "seed": seed,
        **answerer.describe(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("falcon3-audio", *answerer.packages)},
        },
    }
    return json.loads(json.dumps(settings))


def _own_text(prompt: Prompt) -> dict[str, str]:
    """The text of a prompt that others cannot look up by its name, and its SHA-256 (hex)."""
    if prompt.text is None:
        return {}
    return {"prompt_text": prompt.text, "prompt_sha256": hashlib.sha256(prompt.text.encode()).hexdigest()}


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """`"prompt: 'plain' -> 'mmar'"` for each value that changed, also inside of dicts."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(key for key in now if key not in before)]
        parts = [differences(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names]
        return [difference for part in parts for difference in part]
    return [] if before == now else [f"{name}: {before!r} -> {now!r}"]


def _ask_what_is_left(items: Sequence[Item], answerer: Answerer, journal: Journal):
    done = journal.outcomes.keys()
    left = [[item for item in batch if item.question.id not in done] for batch in answerer.batches(items)]
    left = [batch for batch in left if batch]
    with tqdm(total=len(items), initial=len(done), unit="question", disable=None) as bar:

        def work(batch: list[Item]):
            for outcomes in answerer.answer(batch):
                journal.append({"outcomes": outcomes})
                bar.update(len(outcomes))

        _do_all(work, left, answerer.workers)


def _do_all(work: Callable[[list[Item]], None], batches: Sequence[list[Item]], workers: int):
    """Here and in order for one worker, else in threads; after an error nothing new is begun."""
    if workers == 1:
        for batch in batches:
            work(batch)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, batch) for batch in batches]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _provenance(items: Sequence[Item], journal: Journal, settings: dict[str, Any]) -> dict[str, Any]:
    outcomes = [journal.outcomes[item.question.id] for item in items]
    counts = [count for count in (outcome.get("audio_tokens") for outcome in outcomes) if count]
    statistics = {"min": min(counts), "max": max(counts), "mean": sum(counts) / len(counts)} if counts else None
    return settings | {
        "prompt_example": items[0].prompt,
        "audio_tokens": statistics,  # of a prompt with audio
        "audio_check": journal.audio_check or "no audio was played",
        "served_models": sorted({outcome["served_model"] for outcome in outcomes if "served_model" in outcome}),
        "statuses": dict(Counter(outcome["status"] for outcome in outcomes)),
        "created": journal.begun,
        # Of the process that finished the run; of an endpoint nothing is known.
        "peak_memory_gib": peak_memory_gib() if settings.get("device") else None,
    }


def _row(item: Item, outcome: Outcome, control: str) -> dict[str, Any]:
    question = item.question
    prediction = Prediction(
        id=question.id,
        status=outcome["status"],
        reply=outcome["reply"],
        question=question.question,
        choices=question.choices,
        answer=question.answer,
        audio=tuple(clip.name for clip in question.audio),
        groups=question.groups,
        description=question.description,
        error=outcome["error"],
        prompt=item.prompt,
        check=question.check,
    )
    row = {name: value for name, value in asdict(prediction).items() if name != "check" or value is not None}
    return row | outcome | ({"heard": item.names} if control == "shuffled" else {})
