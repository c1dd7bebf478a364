"""MMAU's and MMAR's accuracy as an `evaluate` metric: their official rule, and the content-aware one.

import evaluate
metric = evaluate.load("evaluation/metrics/mmau")      # the folder, in a clone
metric.compute(predictions=["Man"], references=[{"answer": "Man", "choices": ["Man", "Woman"]}])

It calls falcon3_audio.evaluation.rules, so the package must be installed. A prediction of `None` is a missing reply.
"""

import datasets
import evaluate

from falcon3_audio.evaluation.rules import accuracies


class MMAU(evaluate.Metric):
    """Returns `accuracy` by the official rule, which leaves out missing replies, and `content_accuracy`, which does not."""

    def _info(self) -> evaluate.MetricInfo:
        reference = {"answer": datasets.Value("string"), "choices": [datasets.Value("string")]}
        return evaluate.MetricInfo(
            description="Accuracy on MMAU and MMAR by their official rule, and by the content of the replies.",
            citation="MMAU: https://arxiv.org/abs/2410.19168; MMAR: https://arxiv.org/abs/2505.13032",
            inputs_description=__doc__,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": reference}),
        )

    def _compute(self, predictions: list[str | None], references: list[dict]) -> dict[str, float | None]:
        return accuracies("mmau-official", predictions, references)
