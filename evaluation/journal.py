"""The finished part of a run: files to which whole lines are appended, each on disk before the next question is asked.

A run of one process has `journal.jsonl`. Further processes have their own, `journal-1.jsonl` and so on, and each reads
the others': a finished question is not asked again, even if a run resumes with more or fewer processes.
"""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from falcon3_audio.locks import lock

from .answerers import Outcome
from .predictions import ANSWERED, PREDICTIONS


JOURNAL = "journal.jsonl"


class Journal:
    """
    The finished questions: a file to which whole lines are appended, each on disk before `append` returns.

    Args:
        folder: of the run; created if it does not exist.
        settings: those the run is started with.
        process: the number of the process, from 0.

    Attributes:
        folder: of the run.
        outcomes: by question id, including those of other processes.
        audio_check: see `Answerer.check_audio`; `None` until a process has appended it.
        begun: when the first line was written (ISO 8601, UTC).

    Raises:
        `ValueError`: the journal is damaged or of a run with other settings, or there are predictions without one.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], process: int = 0):
        self.outcomes: dict[str, Outcome] = {}
        self.audio_check: str | None = None
        self.begun: str | None = None
        self._lock, self.folder, self._settings = Lock(), folder, settings
        self._path = path = folder / (f"journal-{process}.jsonl" if process else JOURNAL)
        if (folder / PREDICTIONS).exists() and not any(self._others()) and not path.exists():
            raise ValueError(f"{folder} holds {PREDICTIONS} but no {JOURNAL}; give another --output-dir.")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)
        if not lock(self._file):
            self.close()
            raise ValueError(f"Another process is writing to {folder}; wait for it, or give another --output-dir.")
        try:
            whole = self._read(path)
            self.read_others()
        except ValueError:
            self.close()
            raise
        self._file.truncate(whole)  # drops a last line that was cut off
        if not whole:
            self.append({"settings": settings, "begun": datetime.now(UTC).isoformat(timespec="seconds")})

    def append(self, line: dict[str, Any]):
        """Appends `{"outcomes": [...]}` of questions that finished together, or `{"audio_check": ...}`."""
        with self._lock:
            self._file.write((json.dumps(line) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._take(line)

    def close(self):
        self._file.close()

    def read_others(self):
        """Reads what other processes have finished so far. Raises `ValueError` as the class does."""
        for path in self._others():
            self._read(path)

    def _others(self) -> Iterator[Path]:
        return (path for path in sorted(self.folder.glob("journal*.jsonl")) if path != self._path)

    def _read(self, path: Path) -> int:
        """Reads the whole lines of a file, and returns their length in bytes."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                parsed = json.loads(line)
                before = parsed["settings"] if number == 1 else {}
                self._take(parsed)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is damaged ({error!r}); give another --output-dir."
                ) from None
            changed = differences(before, self._settings) if number == 1 else []
            if changed:
                raise ValueError(
                    f"{path.parent} holds a run with other settings: {', '.join(changed)}. Give another --output-dir, "
                    "or the settings that run was started with."
                )
        return whole

    def _take(self, line: dict[str, Any]):
        if "settings" in line:
            self.begun = min(line["begun"], self.begun or line["begun"])
        elif "audio_check" in line:
            self.audio_check = line["audio_check"]
        else:
            for outcome in line["outcomes"]:
                # In whatever order the files are read, a question that failed and was asked again keeps its answer.
                before = self.outcomes.get(outcome["id"], {})
                if before.get("status") != ANSWERED or outcome["status"] == ANSWERED:
                    self.outcomes[outcome["id"]] = outcome


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """`"prompt: 'plain' -> 'mmar'"` for each value that changed, also inside dicts."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(key for key in now if key not in before)]
        parts = [differences(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names]
        return [difference for part in parts for difference in part]
    return [] if before == now else [f"{name}: {before!r} -> {now!r}"]


__all__ = ["JOURNAL", "Journal", "differences"]
