"""AIR-Bench Foundation's accuracy as an `evaluate` metric: its official rule, and the content-aware one.

import evaluate
metric = evaluate.load("evaluation/metrics/air_bench_foundation")      # the folder, in a clone
metric.compute(predictions=["A"], references=[{"answer": "male", "choices": ["male", "female"]}])

Give it the rows of one task: published scores are the mean over the tasks. It calls falcon3_audio.evaluation.rules, so
the package must be installed. A prediction of `None` is a missing reply.
"""

import datasets
import evaluate

from falcon3_audio.evaluation.rules import accuracies


class AirBenchFoundation(evaluate.Metric):
    """Returns `accuracy` by the official rule, which leaves out replies without a label, and `content_accuracy`."""

    def _info(self) -> evaluate.MetricInfo:
        reference = {"answer": datasets.Value("string"), "choices": [datasets.Value("string")]}
        return evaluate.MetricInfo(
            description="Accuracy on AIR-Bench Foundation by its official rule, and by the content of the replies.",
            citation="AIR-Bench: https://arxiv.org/abs/2402.07729",
            inputs_description=__doc__,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": reference}),
        )

    def _compute(self, predictions: list[str | None], references: list[dict]) -> dict[str, float | None]:
        return accuracies("air-bench-official", predictions, references)
