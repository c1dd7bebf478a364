"""Small random backbones, audio and prompts for the tests. Nothing is downloaded."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    StaticCache,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from falcon3_audio import Falcon3AudioProcessor
from falcon3_audio.releases_falcon3_audio import CACHE


SAMPLING_RATE = 16_000

# The chat format of Falcon3-Instruct.
FALCON3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


def make_tokenizer(special_tokens: list[str] | None = None, template: str | None = FALCON3_TEMPLATE, **special):
    """A byte-level tokenizer of about 280 tokens; by default with Falcon3's special tokens."""
    if special_tokens is None:
        special_tokens = [">>UNUSED_0<<", ">>UNUSED_1<<", "<|endoftext|>", "<|pad|>"]
        special = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=280
    )
    tokenizer.train_from_iterator(["what do you hear in this sound a dog a bell"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def make_whisper(num_mel_bins: int = 80, seed: int = 0, **options) -> WhisperForConditionalGeneration:
    torch.manual_seed(seed)
    sizes = dict(d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64)
    decoder = dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=100)
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    config = WhisperConfig(num_mel_bins=num_mel_bins, **(sizes | decoder | tokens | options))
    return WhisperForConditionalGeneration(config).eval()


def make_llm(family: str = "llama", vocab_size: int = 300, seed: int = 0, **options):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=2, head_dim=12, max_position_embeddings=8192)
    tokens = dict(bos_token_id=None, eos_token_id=2, pad_token_id=3)
    config = CONFIG_MAPPING[family](vocab_size=vocab_size, **(sizes | tokens | options))
    return AutoModelForCausalLM.from_config(config).eval()


def tone(seconds: float, pitch: float = 440.0, rate: int = SAMPLING_RATE) -> np.ndarray:
    """A sine with a little seeded noise, so that no two parts of it are equal."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(int(pitch)).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.05 * noise).astype(np.float32)


def question(*clips, text: str = "What do you hear?") -> list[dict]:
    """One user message about some clips."""
    audio = [{"type": "audio", "audio": clip, "sampling_rate": SAMPLING_RATE} for clip in clips]
    return [{"role": "user", "content": [*audio, {"type": "text", "text": text}]}]


def make_processor(tokenizer=None, mels=80, vocab_size=None, **options):
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    return Falcon3AudioProcessor.from_backbones(
        WhisperFeatureExtractor(feature_size=mels), tokenizer, vocab_size=vocab_size, **options
    )


def features_of(processor, clip) -> np.ndarray:
    return processor(audio=clip, sampling_rate=16_000)["input_features"][0].numpy()


def tokenized(processor, conversation, **kwargs):
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, **kwargs)


def audio_tokens(processor, row) -> int:
    return int((row == processor.audio_token_id).sum())


def prompt(processor, *conversations, **kwargs):
    """The model's inputs for conversations that wait for an answer."""
    return tokenized(processor, list(conversations), add_generation_prompt=True, **kwargs)


def answer(model, inputs, **options):
    """Greedy new tokens, eight per prompt."""
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False} | options
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def decode_compiled(model, inputs, steps: int = 3) -> tuple[list[int], int]:
    """
    Greedy tokens after one prompt, all but the first by a compiled model, one each step into a static cache, and how many
    graphs that took. A break in the graph is an error.
    """
    from torch._dynamo.testing import CompileCounter  # takes a second, and every test imports this module

    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.text_config, max_cache_len=length + steps)
    graphs = CompileCounter()
    decode = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.no_grad():
        tokens = [model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)]
        for step in range(steps):
            positions = torch.tensor([[length + step]])
            logits = decode(tokens[-1], **{CACHE: cache}, position_ids=positions).logits
            tokens.append(logits[:, -1:].argmax(-1))
    return [int(token) for token in tokens], graphs.frame_count
