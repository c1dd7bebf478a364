"""Asks a model a set of questions and writes its replies: `predictions.jsonl` and `run.json`.

Finished questions are appended to `journal.jsonl` and are on disk before the next question is asked. A killed run
therefore resumes where it stopped, asks no question twice and produces the same bytes: batches depend on all the
questions, not on those that are left, nor on the number of processes. Each of several processes takes its share of the
batches, and the last to finish writes the predictions; they need no connection except the folder. A run resumes only
with the settings it was started with; another model, prompt, file, clip or version is an error that names what differs.
Failed questions are recorded with their error, and scored as failed; the same command asks them again. A run stops if
the server fails several times in a row.
Run: `falcon3-audio evaluate` (evaluate.py).
"""

import hashlib
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm.auto import tqdm

from falcon3_audio.locks import locked
from falcon3_audio.peak_memory import peak_memory_gib
from falcon3_audio.whole_files import whole_file, write_json

from .answerers import SERVER_FAILED, Answerer, Item, Outcome
from .controls import heard
from .endpoint import EndpointFailed, EndpointUnavailable
from .journal import Journal
from .orders import in_orders
from .predictions import ANSWERED, FAILED, PREDICTIONS, RUN, Prediction
from .prompts import PROMPTS, Prompt
from .questions import Clip, QuestionSet, file_sha256, some
from .wordings import Paraphrases, in_wordings


OF_SOME = ("check", "references")  # fields that only some benchmarks' rows have
IN_A_ROW = 5  # clips that the server fails on before the run stops
CLIP_DIGESTS = "clips_sha256"  # in outcomes
LOCK = "predictions.lock"  # while one of several processes writes the results


def generate(
    questions: QuestionSet,
    answerer: Answerer,
    output: str | Path,
    prompt: str | Prompt = "plain",
    control: str = "none",
    seed: int = 0,
    shuffled_orders: int = 0,
    paraphrases: Paraphrases | None = None,
    process: int = 0,
    processes: int = 1,
) -> Counter[str] | None:
    """
    Asks the questions that are left, and writes the predictions when all are finished.

    Args:
        questions: with unique ids.
        output: the folder, new or of the same run.
        prompt: a name in `prompts.PROMPTS`, or a custom prompt (`prompts.read_prompt`).
        control: a name in `controls.CONTROLS`.
        seed: for the control "shuffled" and for shuffled options.
        shuffled_orders: in how many other orders of the options to ask as well, see orders.py.
        paraphrases: other wordings to ask as well, see wordings.py; not with shuffled options.
        process, processes: the number of this process, from 0, and how many processes share the questions.

    Returns:
        How many questions have each status; `None` if other processes are not finished yet.

    Raises:
        `ValueError`: no questions, a duplicate id, a question that does not fit the prompt, another run in `output`, or
            answers there about clips that have changed.
        `RunStopped`, `EndpointUnavailable`: continuing makes no sense now; the same call resumes later.
    """
    output = Path(output)
    prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt, PROMPTS[prompt])
    if shuffled_orders and paraphrases:
        raise ValueError(
            "got shuffled options and paraphrases; expected only one, so that it is clear what replies depend on."
        )
    questions = in_orders(questions, shuffled_orders, seed) if shuffled_orders else questions
    questions = in_wordings(questions, paraphrases) if paraphrases else questions
    items = _items(questions, prompt, control, seed)
    settings = _settings(questions, items, answerer, prompt, control, seed)
    settings |= {"shuffled_orders": shuffled_orders} if shuffled_orders else {}
    settings |= {"paraphrases_sha256": paraphrases.sha256} if paraphrases else {}
    journal = Journal(output, settings, process)
    try:
        digests = ClipDigests()
        _check_clips(items, journal, digests)
        if any(item.heard for item in items) and journal.audio_check is None:
            _check_audio(items, answerer, journal)
        _ask_what_is_left(answerer.batches(items)[process::processes], answerer, journal, digests)
    finally:
        journal.close()
    # One after the other: else outcomes read by one process could overwrite the later ones of another.
    with locked(output / LOCK, wait=True) if processes > 1 else nullcontext():
        journal.read_others()
        if any(item.question.id not in journal.outcomes for item in items):
            return None
        # The predictions come last: they mark the run as finished.
        write_json(output / RUN, _provenance(items, journal, settings))
        with whole_file(output / PREDICTIONS) as file:
            for item in items:
                row = _row(item, journal.outcomes[item.question.id], control)
                file.write((json.dumps(row) + "\n").encode())
    if failed := sum(outcome["status"] == FAILED for outcome in journal.outcomes.values()):
        print(f"{failed} questions failed; the same command asks them again", file=sys.stderr)
    return Counter(outcome["status"] for outcome in journal.outcomes.values())


def _items(questions: QuestionSet, prompt: Prompt, control: str, seed: int) -> list[Item]:
    if not questions.questions:
        raise ValueError(f"There are no questions in {', '.join(questions.sha256) or 'the set'}.")
    counts = Counter(question.id for question in questions.questions)
    twice = [identity for identity, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids belong to several questions, the first is {twice[0]!r}; expected unique ids."
        )
    clips = heard(questions.questions, control, seed)
    items = [Item(question, prompt.fill(question), played) for question, played in zip(questions.questions, clips)]
    if any(not item.prompt and not item.heard for item in items):
        raise ValueError(
            f"The prompt {prompt.name!r} has no text and the control {control!r} no audio; give another --prompt."
        )
    return items


def _settings(
    questions: QuestionSet, items: Sequence[Item], answerer: Answerer, prompt: Prompt, control: str, seed: int
) -> dict[str, Any]:
    """The settings that decide the predictions, as read back from JSON."""
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
    """The text of a custom prompt, which cannot be looked up by name, and its SHA-256 (hex)."""
    if prompt.text is None:
        return {}
    return {"prompt_text": prompt.text, "prompt_sha256": hashlib.sha256(prompt.text.encode()).hexdigest()}


def _check_audio(items: Sequence[Item], answerer: Answerer, journal: Journal):
    """Records whether the model hears; if the server fails, only in this run, and the next one checks again."""
    try:
        journal.append({"audio_check": answerer.check_audio()})
    except (EndpointFailed, EndpointUnavailable) as error:
        if isinstance(error, EndpointUnavailable) and _left([items], journal.outcomes):
            raise
        journal.audio_check = f"unknown: {error}"


class ClipDigests:
    """SHA-256 (hex) of clips that are files of their own, to record with outcomes; `None` for unreadable ones."""

    def __init__(self) -> None:
        self._known: dict[Path, str | None] = {}

    def of(self, item: Item) -> dict[str, list[str | None]]:
        paths = [clip.path for clip in item.heard if clip.path is not None]
        return {CLIP_DIGESTS: [self._digest(path) for path in paths]} if paths else {}

    def _digest(self, path: Path) -> str | None:
        if path not in self._known:
            try:
                self._known[path] = file_sha256(path)
            except OSError:
                self._known[path] = None
        return self._known[path]


def _check_clips(items: Sequence[Item], journal: Journal, digests: ClipDigests):
    """Raises a `ValueError` if answers are about clips that have changed; failed questions are asked again anyway."""
    changed = []
    for item in items:
        outcome = journal.outcomes.get(item.question.id, {})
        recorded = outcome.get(CLIP_DIGESTS) if outcome.get("status") == ANSWERED else None
        if recorded is not None and digests.of(item).get(CLIP_DIGESTS) != recorded:
            changed.append(item.question.id)
    if changed:
        raise ValueError(
            f"{journal.folder} has answers about other clips of the same names: {some(changed)}. Give another "
            "--output-dir, or the clips that the run was started with (--audio-root)."
        )


class Failures:
    """Stops a run when the server has failed on questions about `IN_A_ROW` clips without an answer in between."""

    def __init__(self, new: Iterable[Item]):
        # If questions that are asked again stopped runs too, a few that the server always fails on would stop them all.
        # For the same reason, the questions about one clip count as one.
        self._clips = {item.question.id: item.names or (item.question.id,) for item in new}
        self._failed, self._lock = set[tuple[str, ...]](), Lock()

    def check(self, outcomes: Sequence[Outcome]):
        """Counts outcomes; threads may call it at the same time. Raises `EndpointUnavailable` to stop the run."""
        for outcome in outcomes:
            with self._lock:
                if outcome["status"] == ANSWERED:
                    self._failed.clear()
                if SERVER_FAILED not in outcome or outcome["id"] not in self._clips:
                    continue
                self._failed.add(self._clips[outcome["id"]])
                if len(self._failed) >= IN_A_ROW:
                    said = outcome["error"].rstrip(".")
                    raise EndpointUnavailable(f"{said}. It failed on {IN_A_ROW} clips in a row.")


def _left(share: Sequence[Sequence[Item]], outcomes: Mapping[str, Outcome]) -> list[list[Item]]:
    """The batches of what is to be asked: questions without an outcome, then those that failed."""
    new = [[item for item in batch if item.question.id not in outcomes] for batch in share]
    failed = {identity for identity, outcome in outcomes.items() if outcome["status"] == FAILED}
    again = [[item for item in batch if item.question.id in failed] for batch in share]
    return [batch for batch in [*new, *again] if batch]


def _ask_what_is_left(share: Sequence[list[Item]], answerer: Answerer, journal: Journal, digests: ClipDigests):
    left = _left(share, journal.outcomes)
    failures = Failures(item for batch in left for item in batch if item.question.id not in journal.outcomes)
    total, asked, start = sum(map(len, share)), sum(map(len, left)), time.perf_counter()
    with tqdm(total=total, initial=total - asked, unit="question", disable=None) as bar:

        def work(batch: list[Item]):
            found = {item.question.id: digests.of(item) for item in batch}
            for outcomes in answerer.answer(batch):
                journal.append({"outcomes": [outcome | found[outcome["id"]] for outcome in outcomes]})
                bar.update(len(outcomes))
                failures.check(outcomes)

        if answerer.workers == 1:
            _one_by_one(work, answerer.prepare, left)
        else:
            _at_once(work, left, answerer.workers)
    if asked:
        seconds = time.perf_counter() - start
        print(f"{asked} questions in {seconds:.1f} s: {asked / seconds:.2f} questions/s", file=sys.stderr)


def _one_by_one(work: Callable[[list[Item]], None], prepare: Callable[[list[Clip]], None], batches: list[list[Item]]):
    """In order; while a batch is answered, a thread reads the clips of the next one."""
    with ThreadPoolExecutor(1) as ahead:
        reading = None
        for batch, following in zip(batches, [*batches[1:], []]):
            if reading is not None:
                reading.result()
            here, there = _clips(batch), _clips(following)
            reading = ahead.submit(prepare, [clip for name, clip in there.items() if name not in here])
            work(batch)


def _clips(batch: list[Item]) -> dict[str, Clip]:
    return {clip.name: clip for item in batch for clip in item.heard}


def _at_once(work: Callable[[list[Item]], None], batches: Sequence[list[Item]], workers: int):
    """In threads; after an error no new batch is started."""
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
        "audio_tokens": statistics,  # per prompt with audio
        "audio_check": journal.audio_check or "no audio was played",
        "served_models": sorted({outcome["served_model"] for outcome in outcomes if "served_model" in outcome}),
        "statuses": dict(Counter(outcome["status"] for outcome in outcomes)),
        "created": journal.begun,
        # Of the process that finished the run; unknown for an endpoint.
        "peak_memory_gib": peak_memory_gib(settings["device"]) if settings.get("device") else None,
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
        references=question.references,
    )
    row = {name: value for name, value in asdict(prediction).items() if name not in OF_SOME or value}
    return row | outcome | ({"heard": item.names} if control == "shuffled" else {})
