"""Falcon3-Audio in vLLM: its Transformers backend, and what the backend lacks for this model.

The backend runs the model and its LoRA adapters. Added here: clips are checked and resampled by this package's own
`load_audio`, so that any rate gives the same samples as in transformers and errors say what is wrong with a clip; the
encoder's budget is that of the longest clip the processor takes; clips of different lengths are encoded together; a
placeholder beyond the vocabulary is not looked up in the embedding; and
`/v1/audio/transcriptions` and `/translations`.

Only vLLM imports this module, see vllm_plugin.py.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import ModelConfig, SpeechToTextConfig, VllmConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.inputs import MultiModalDataDict, TokensPrompt
from vllm.model_executor.models.interfaces import SupportsTranscription
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.audio import AudioResampler
from vllm.multimodal.parse import MultiModalDataParser
from vllm.transformers_utils.processor import cached_processor_from_config

from falcon3_audio.processing import SAMPLING_RATE, TRANSCRIBE, AudioTooLongError, load_audio


TRANSLATE = "Translate the speech into {language}."


class CheckedResampler(AudioResampler):
    """
    vLLM's hook between decoding and processor: mono float32 at 16 kHz, shape `(samples,)`.

    Raises a `ValueError`, which vLLM answers with the status 400, for audio that `load_audio` refuses and for clips of
    more than `max_seconds`.
    """

    def __init__(self, max_seconds: float):
        super().__init__(target_sr=SAMPLING_RATE)
        self.max_seconds = max_seconds

    def resample(self, audio: np.ndarray, *, orig_sr: float) -> np.ndarray:
        seconds = audio.shape[-1] / orig_sr
        if seconds > self.max_seconds:
            raise AudioTooLongError(f"The audio is {seconds:.1f} s long, over the limit of {self.max_seconds:g} s.")
        return load_audio(audio, int(orig_sr), "The audio")


class Falcon3AudioProcessingInfo(MultiModalProcessingInfo):
    def get_data_parser(self) -> MultiModalDataParser:
        parser = super().get_data_parser()
        parser.audio_resampler = CheckedResampler(self.get_hf_processor().max_audio_seconds)
        return parser

    def get_longest_clip(self) -> int:
        """Samples of the longest clip that both the processor and the context take."""
        longest = int(self.get_hf_processor().max_audio_seconds * SAMPLING_RATE)
        context = self.ctx.model_config.max_model_len
        # Silence and padding to windows add tokens that do not grow with the clip; longer clips never have fewer.
        return max(1, bisect_right(range(longest + 1), context, lo=1, key=self._count_tokens) - 1)

    def get_max_audio_tokens(self) -> int:
        return self._count_tokens(self.get_longest_clip())

    def _count_tokens(self, samples: int) -> int:
        return self.get_hf_processor()._get_num_multimodal_tokens(audio_lengths=[samples])["num_audio_tokens"][0]


class Falcon3AudioDummyInputs(MultiModalDummyInputsBuilder):
    """The inputs with which vLLM measures memory."""

    info: Falcon3AudioProcessingInfo

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> MultiModalDataDict:
        silence = np.zeros(self.info.get_longest_clip(), np.float32)
        return {"audio": [silence] * mm_counts.get("audio", 0)}


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=Falcon3AudioProcessingInfo, dummy_inputs=Falcon3AudioDummyInputs
)
class Falcon3AudioForVllm(TransformersMultiModalForCausalLM, SupportsTranscription):
    # The language of the paper's encoders; vLLM answers others with a warning in the log.
    supported_languages = {"en": "English"}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.audio_token_id])

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        # Clips of different lengths come as lists. The backend would encode them one by one, with a mask that is still
        # a list; the encoder takes them together, and computes real frames only.
        for name in ("input_features", "input_features_mask"):
            if isinstance(kwargs.get(name), list):
                kwargs[name] = _pad(kwargs[name])
        return super().embed_multimodal(**kwargs)

    @classmethod
    def get_speech_to_text_config(cls, model_config: ModelConfig, task_type: str) -> SpeechToTextConfig:
        processor = cached_processor_from_config(model_config)
        # Longer speech is cut where it is quiet: a clip and its transcript have to fit the context together.
        return SpeechToTextConfig(
            sample_rate=SAMPLING_RATE, max_audio_clip_s=int(processor.feature_extractor.chunk_length)
        )

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> TokensPrompt:
        processor = cached_processor_from_config(stt_params.model_config)
        instruction = TRANSCRIBE
        if stt_params.task_type == "translate":
            language = stt_params.to_language or "en"
            names = {**cls.get_other_languages(), **cls.supported_languages}
            instruction = TRANSLATE.format(language=names[language])
        text = " ".join(filter(None, (instruction, stt_params.request_prompt)))
        chat = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": text}]}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return TokensPrompt(
            prompt_token_ids=processor.tokenizer.encode(prompt, add_special_tokens=False),
            multi_modal_data={"audio": (stt_params.audio, SAMPLING_RATE)},
        )


def _pad(rows: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of different last dimensions as one, zeros on the right."""
    width = max(row.shape[-1] for row in rows)
    return torch.stack([nn.functional.pad(row, (0, width - row.shape[-1])) for row in rows])
