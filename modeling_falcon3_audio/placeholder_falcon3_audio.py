# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Generation from prompts whose placeholder has neither a row of the embedding nor a logit.

Some of what `generate` does looks up the logits of the prompt's tokens. Here it finds one for the placeholder as well, minus
infinity, so that answers are those of a model whose vocabulary has a placeholder that is never said. Travels with every
saved checkpoint.
"""

import torch
from torch import nn
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PromptLookupCandidateGenerator,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


# Those that change the logits of tokens because the prompt has them.
_READ_THE_PROMPT = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)


class WithPlaceholder(LogitsProcessor):
    """Runs `processor` on logits that have one for `audio_token_id`, and returns as many as were given."""

    def __init__(self, processor: LogitsProcessor, audio_token_id: int):
        self.processor, self.audio_token_id = processor, audio_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        width = scores.shape[-1]
        missing = max(0, self.audio_token_id + 1 - width)
        return self.processor(input_ids, nn.functional.pad(scores, (0, missing), value=-torch.inf))[..., :width]


class PlaceholderGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose config has `audio_token_id`, and `audio_token_is_embedded`."""

    # transformers (5.16 to 5.24) has no public place to change what it makes of its settings.
    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        if self.config.audio_token_is_embedded:
            return processors
        token = self.config.audio_token_id
        return LogitsProcessorList(
            WithPlaceholder(processor, token) if isinstance(processor, _READ_THE_PROMPT) else processor
            for processor in processors
        )

    def _get_candidate_generator(self, *args, **kwargs):
        generator = super()._get_candidate_generator(*args, **kwargs)
        if isinstance(generator, PromptLookupCandidateGenerator) and not self.config.audio_token_is_embedded:
            # It asks the processors, with logits of its own, which tokens may be drafted.
            token = self.config.audio_token_id
            generator.vocab_size = token + 1
            forbidden = SuppressTokensLogitsProcessor([token], device=self.device)
            generator.logits_processor = LogitsProcessorList([*generator.logits_processor, forbidden])
        return generator


__all__ = ["PlaceholderGenerationMixin"]
