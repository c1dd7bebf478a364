"""`pipeline("any-to-any", batch_size=...)` with clips.

The padding of transformers 5.24 splits up an input's clips: it raises an error, or keeps only one clip per input.
"""

from dataclasses import dataclass
from typing import Any

from torch.nn.utils.rnn import pad_sequence
from transformers import AnyToAnyPipeline

from .configuration_falcon3_audio import Falcon3AudioConfig
from .pipeline_inputs_falcon3_audio import check_batch_size, in_batches


@dataclass
class _Batch:
    """Inputs that are answered together. Not a list, since a list is one input with several texts."""

    inputs: list[Any]


class Falcon3AudioAnyToAnyPipeline(AnyToAnyPipeline):
    """transformers' any-to-any pipeline for any of its models; it can batch clips for Falcon3-Audio."""

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        arguments = (preprocess_params, forward_params, postprocess_params)
        if batch_size == 1 or not isinstance(self.model.config, Falcon3AudioConfig):
            return super().get_iterator(inputs, num_workers, batch_size, *arguments)
        check_batch_size(batch_size)
        answered = super().get_iterator(map(_Batch, in_batches(inputs, batch_size)), 0, 1, *arguments)
        return (records for batch in answered for records in batch)

    def preprocess(self, inputs=None, **kwargs):
        if not isinstance(inputs, _Batch):
            return super().preprocess(inputs, **kwargs)
        return self._pad(
            [super(Falcon3AudioAnyToAnyPipeline, self).preprocess(one, **kwargs) for one in inputs.inputs]
        )

    def _pad(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates the `preprocess` outputs of several inputs: pads prompts on the left, clips on the right."""
        tokens = {name: [row for item in items for row in item[name]] for name in ("input_ids", "attention_mask")}
        padded = self.tokenizer.pad(tokens, padding_side="left", return_tensors="pt")
        batch = {"text": _Batch([item["text"] for item in items]), **padded}
        for name in ("input_features", "input_features_mask"):
            # Frames come last: (clips, mel bins, frames) and (clips, frames).
            clips = [clip.movedim(-1, 0) for item in items if name in item for clip in item[name]]
            if clips:
                batch[name] = pad_sequence(clips, batch_first=True).movedim(1, -1)
        return batch

    def postprocess(self, model_outputs, **kwargs):
        """The records of one input; for a batch, a list of records for each input."""
        prompts = model_outputs["prompt_text"]
        if not isinstance(prompts, _Batch):
            return super().postprocess(model_outputs, **kwargs)
        records, start = [], 0
        for prompt in prompts.inputs:
            rows = slice(start, start + (len(prompt) if isinstance(prompt, (list, tuple)) else 1))
            # (rows, tokens), or (rows, answers, tokens) if several answers are requested.
            parts = {name: model_outputs[name][rows] for name in ("generated_sequence", "input_ids")}
            records.append(super().postprocess({"prompt_text": prompt, **parts}, **kwargs))
            start = rows.stop
        return records
