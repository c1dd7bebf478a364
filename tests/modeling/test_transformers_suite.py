"""transformers' shared tests for models, configurations and processors, run on this model.

They come from transformers' source distribution (see transformers_suite.py) and are skipped if it is not available.
"""

import contextlib
import functools
import unittest
from unittest import mock

import pytest
import torch
import transformers_suite
from tiny import make_tokenizer
from transformers import LlamaConfig, WhisperFeatureExtractor
from transformers.models.auto import modeling_auto

from falcon3_audio import (
    Falcon3AudioConfig,
    Falcon3AudioEncoderConfig,
    Falcon3AudioForConditionalGeneration,
    Falcon3AudioModel,
    Falcon3AudioProcessor,
)
from falcon3_audio.processing import make_chat_template


pytest.importorskip("parameterized", reason="transformers' shared tests need it")
try:
    common, processing, configuration, training = transformers_suite.load(
        "test_modeling_common", "test_processing_common", "test_configuration_common", "test_training_mixin"
    )
except transformers_suite.SuiteUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

AUDIO_TOKEN, PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = 0, 96, 97, 98


@pytest.fixture(autouse=True, scope="module")
def surroundings():
    """Class names in the tables in which the shared tests look up a model's inputs."""
    heads = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM")
    tables = {f"MODEL_FOR_{head}_MAPPING_NAMES": Falcon3AudioForConditionalGeneration for head in heads}
    with contextlib.ExitStack() as stack:
        for table, model_class in (tables | {"MODEL_MAPPING_NAMES": Falcon3AudioModel}).items():
            entry = {Falcon3AudioConfig.model_type: model_class.__name__}
            stack.enter_context(mock.patch.dict(getattr(modeling_auto, table), entry))
        yield


def ids_tensor(shape, vocab_size, *args, **kwargs):
    """Random text without the placeholder: this model refuses a placeholder without audio."""
    ids = random_ids(shape, vocab_size, *args, **kwargs)
    return ids.masked_fill(ids == AUDIO_TOKEN, AUDIO_TOKEN + 1)


random_ids, common.ids_tensor = common.ids_tensor, ids_tensor


class ModelTester:
    """A tiny model, and prompts with one clip each."""

    is_training = True
    # The size that the eager/sdpa comparison needs; it would fill up a smaller batch itself.
    batch_size = 7
    seq_length = 9
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    causal_lm_class = Falcon3AudioForConditionalGeneration
    frames = 10  # real ones: 5 encoder positions
    audio_tokens = 3

    def __init__(self, parent):
        self.parent = parent
        self.audio_config = {
            "num_mel_bins": 8,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_source_positions": 10,
        }
        self.text_config = {
            "vocab_size": 99,
            "hidden_size": self.hidden_size,
            "intermediate_size": 48,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "pad_token_id": PAD_TOKEN,
            "bos_token_id": BOS_TOKEN,
            "eos_token_id": EOS_TOKEN,
        }

    def get_config(self) -> Falcon3AudioConfig:
        return Falcon3AudioConfig(
            audio_config=Falcon3AudioEncoderConfig(**self.audio_config),
            text_config=LlamaConfig(**self.text_config),
            audio_token_id=AUDIO_TOKEN,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], PAD_TOKEN)
        input_ids[:, 1 : 1 + self.audio_tokens] = AUDIO_TOKEN
        # One frame of right context follows the real ones, as from the processor.
        mask = torch.ones(self.batch_size, self.frames + 1, dtype=torch.long, device=common.torch_device)
        mask[:, self.frames :] = 0
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "input_features": common.floats_tensor(
                [*mask.shape[:1], self.audio_config["num_mel_bins"], mask.shape[1]]
            ),
            "input_features_mask": mask,
        }


class ModelTest(
    common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin, unittest.TestCase
):
    all_model_classes = (Falcon3AudioModel, Falcon3AudioForConditionalGeneration)
    additional_model_inputs = ["input_features", "input_features_mask"]
    _is_composite = True
    model_tester = None

    def setUp(self):
        self.model_tester = ModelTester(self)

    def test_config(self):
        for config_class in (Falcon3AudioConfig, Falcon3AudioEncoderConfig):
            configuration.ConfigTester(self, config_class=config_class, has_text_modality=False).run_common_tests()

    def test_training_overfit(self):
        # The shared test reads a text model's config.
        vocabulary = property(lambda config: config.text_config.vocab_size)
        with mock.patch.object(Falcon3AudioConfig, "vocab_size", vocabulary, create=True):
            super().test_training_overfit()


# Falcon3's format with tool calls.
TOOL_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + (message['content'] or '') }}"
    "{% for tool_call in message['tool_calls'] or [] %}{{ tool_call['function'] | tojson }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)


class ProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = Falcon3AudioProcessor

    @classmethod
    def setUpClass(cls):
        # transformers' own classes save no code with them; classes that do are marked in `to_dict`.
        cls.enterClassContext(mock.patch.object(Falcon3AudioProcessor, "_auto_class", None))
        super().setUpClass()

    @classmethod
    def _setup_feature_extractor(cls):
        return WhisperFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        special_tokens = ["<|audio|>", "<|endoftext|>", "<|pad|>"]
        return make_tokenizer(special_tokens, eos_token="<|endoftext|>", pad_token="<|pad|>")

    @staticmethod
    def prepare_processor_dict():
        return {"chat_template": make_chat_template(TOOL_TEMPLATE, "<|audio|>"), "pooling_window": 4}

    def test_subprocessor_defaults_3_audio(self):
        # Features equal those of the feature extractor only if they are also padded to 30 s.
        options = self.prepare_processor_dict() | {"pad_to_window": True}
        with mock.patch.object(self, "prepare_processor_dict", lambda: options):
            super().test_subprocessor_defaults_3_audio()

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        # The shared tests look for images and videos, though audio would do.
        return "replace_audio_token" in vars(processor_class)

    # Requires librosa, with which transformers decodes files; this processor uses soundfile.
    test_chat_template_audio_sampling_rate = (
        processing.ProcessorTesterMixin.test_chat_template_audio_sampling_rate.__wrapped__
    )

    def test_apply_chat_template_tool_calls_no_content(self):
        # The shared test expects the lists that transformers gives by default; here these are tensors.
        as_lists = functools.partialmethod(Falcon3AudioProcessor.apply_chat_template, return_tensors=None)
        with mock.patch.object(Falcon3AudioProcessor, "apply_chat_template", as_lists):
            super().test_apply_chat_template_tool_calls_no_content()

    @unittest.skip("It passes images, which this processor refuses; the same test for audio runs.")
    def test_get_num_multimodal_tokens_matches_processor_call(self): ...
