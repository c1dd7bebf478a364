"""Registers Falcon3-Audio with transformers: the Auto classes, the pipeline, and the code saved with a checkpoint.

Runs once, when `falcon3_audio` is imported. Never uploaded; a checkpoint loaded with `trust_remote_code=True` does not
need it.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    WhisperFeatureExtractor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .any_to_any import Falcon3AudioAnyToAnyPipeline
from .configuration_falcon3_audio import PRESETS, Falcon3AudioConfig, Falcon3AudioEncoderConfig
from .modeling_falcon3_audio import (
    FULL_PRECISION_MODULES,
    LORA_TARGET_MODULES,
    Falcon3AudioForConditionalGeneration,
    Falcon3AudioModel,
)
from .modeling_falcon3_audio_encoder import Falcon3AudioEncoder
from .pipeline_falcon3_audio import AudioTextToTextPipeline
from .processing import Falcon3AudioProcessor


AutoConfig.register(Falcon3AudioEncoderConfig.model_type, Falcon3AudioEncoderConfig)
AutoConfig.register(Falcon3AudioConfig.model_type, Falcon3AudioConfig)
AutoProcessor.register(Falcon3AudioConfig, Falcon3AudioProcessor)
AutoFeatureExtractor.register(Falcon3AudioConfig, WhisperFeatureExtractor)
AutoModel.register(Falcon3AudioEncoderConfig, Falcon3AudioEncoder)
AutoModel.register(Falcon3AudioConfig, Falcon3AudioModel)
for auto_class in (AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM):
    auto_class.register(Falcon3AudioConfig, Falcon3AudioForConditionalGeneration)

PIPELINE_REGISTRY.register_pipeline(
    "audio-text-to-text",
    pipeline_class=AudioTextToTextPipeline,
    pt_model=AutoModelForMultimodalLM,
    type="multimodal",
)
# Not `register_pipeline`, which warns about what it replaces. Nothing changes for other models.
PIPELINE_REGISTRY.supported_tasks["any-to-any"]["impl"] = Falcon3AudioAnyToAnyPipeline

# Saved checkpoints include their code, so that they also load if this package is not installed.
Falcon3AudioConfig.register_for_auto_class("AutoConfig")
Falcon3AudioModel.register_for_auto_class("AutoModel")
Falcon3AudioForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
Falcon3AudioProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "FULL_PRECISION_MODULES",
    "LORA_TARGET_MODULES",
    "PRESETS",
    "AudioTextToTextPipeline",
    "Falcon3AudioConfig",
    "Falcon3AudioEncoder",
    "Falcon3AudioEncoderConfig",
    "Falcon3AudioForConditionalGeneration",
    "Falcon3AudioModel",
    "Falcon3AudioProcessor",
]
