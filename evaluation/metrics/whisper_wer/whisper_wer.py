"""Word error rate after Whisper's English normaliser, as an `evaluate` metric.

import evaluate
metric = evaluate.load("evaluation/metrics/whisper_wer")      # the folder, in a clone
metric.compute(predictions=["mr brown is here"], references=["Mister Brown's here."], spelling="openai/whisper-small.en")

It calls falcon3_audio.evaluation.word_errors, whose docstring explains `spelling` and the rate without it.
"""

import datasets
import evaluate

from falcon3_audio.evaluation.word_errors import count_word_errors, error_rate, normalizer, read_spelling


class WhisperWer(evaluate.Metric):
    """Returns the result of `error_rate`: the corpus's `word_error_rate`, its counts and its interval."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Word error rate of English transcripts after Whisper's normaliser.",
            citation="Whisper: https://arxiv.org/abs/2212.04356",
            inputs_description=__doc__,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str], spelling: str | None = None) -> dict:
        normalize = normalizer(read_spelling(spelling) if spelling else None)
        return error_rate(count_word_errors(references, predictions, normalize))
