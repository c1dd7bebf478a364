"""An lmms-eval task whose questions come from our loaders: the benchmark's files as published, checked.

`dataset_path` in a task's file is a name in `benchmarks.BENCHMARKS`; rows.py explains how its file is found, and what
the `dataset_name` "without-open" leaves out. The file's SHA-256 goes into lmms-eval's results as `metadata`.
"""

from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableMessagesTask

from falcon3_audio.processing import SAMPLING_RATE, load_audio

from ..questions import Clip
from .rows import WITHOUT_OPEN, load, row_of, without_open


class BenchmarkTask(ConfigurableMessagesTask):
    """Rows contain only text; clips are read when a model is asked about them."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None):
        """Called by the base class, which retries errors five times; a missing file is reported immediately here."""
        questions = load(self.DATASET_PATH)
        questions = without_open(questions) if self.DATASET_NAME == WITHOUT_OPEN else questions
        self._clips: dict[str, tuple[Clip, ...]] = {question.id: question.audio for question in questions.questions}
        self.config.metadata = {**(self.config.metadata or {}), "data_sha256": questions.sha256}
        rows = Dataset.from_list([row_of(question) for question in questions.questions])
        self.dataset = self.dataset_no_image = DatasetDict({self.config.test_split: rows})

    def doc_to_messages(self, doc: dict[str, Any], **rounds: Any) -> list[dict[str, Any]]:
        """A user message with the clips, mono float32 at 16 kHz in lmms-eval's audio format, and the text."""
        clips = [load_audio(clip.read(), name=clip.name) for clip in self._clips[doc["id"]]]
        audio = [{"type": "audio", "url": {"array": clip, "sampling_rate": SAMPLING_RATE}} for clip in clips]
        return [{"role": "user", "content": [*audio, {"type": "text", "text": self.doc_to_text(doc)}]}]
