"""Small tokenizers with the layouts of published language models: special tokens and their positions, rows of the
embedding, chat templates, and what they put before a text."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chat_templates import GEMMA, LLAMA3, MISTRAL, QWEN
from tiny import FALCON3_TEMPLATE, make_llm, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
]
SMOLLM2_TOKENS += [
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
]
SMOLLM2_TOKENS += ["<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"]
CORPUS = ["what do you hear in this sound a dog a bell", "user model assistant system"]


def special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, normalized=False, special=True) for token in tokens]


def sentencepiece_like(
    first: list[str], prefix_space: bool, later: list[AddedToken], template: str, **names
) -> PreTrainedTokenizerFast:
    """BPE with "▁" for spaces and a token for each byte, as Llama 2's, Mistral's, Gemma's and Phi-3's."""
    raw = Tokenizer(models.BPE())
    raw.train_from_iterator([f"▁{text.replace(' ', '▁')}" for text in CORPUS], trainers.BpeTrainer(vocab_size=60))
    learned = sorted(raw.get_vocab(), key=raw.get_vocab().__getitem__)
    pieces = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    merges = [(a, b) for piece in learned for a, b in [_halves(piece, learned)] if a]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    steps = [normalizers.Prepend("▁")] if prefix_space else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    ends = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    tokenizer.add_special_tokens(special(*first))
    tokenizer.add_tokens(later)
    return begin_with(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names))


def _halves(piece: str, known: list[str]) -> tuple[str, str]:
    splits = ((piece[:at], piece[at:]) for at in range(len(piece) - 1, 0, -1))
    return next(((a, b) for a, b in splits if a in known and b in known), ("", ""))


def begin_with(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Makes the tokenizer put its BOS token before every text."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    return tokenizer


def falcon3():
    first = [">>UNUSED_0<<", ">>UNUSED_1<<", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"]
    return make_tokenizer(first, FALCON3_TEMPLATE, eos_token="<|endoftext|>", pad_token="<|pad|>")


def smollm2():
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    return make_tokenizer(SMOLLM2_TOKENS, SMOLLM2, **names)


def qwen2():
    tokenizer = make_tokenizer([], QWEN)
    tokenizer.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def llama3():
    tokenizer = make_tokenizer([], LLAMA3)
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(5)]
    headers = ["<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_tokens(
        special(
            "<|begin_of_text|>", "<|end_of_text|>", *reserved[:2], *headers, reserved[2], "<|eot_id|>", *reserved[3:]
        )
    )
    tokenizer.bos_token, tokenizer.eos_token = "<|begin_of_text|>", "<|eot_id|>"
    return begin_with(tokenizer)


def gemma(**named: str):
    unused = [f"<unused{number}>" for number in range(6)]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *unused, "<start_of_turn>", "<end_of_turn>"]
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return sentencepiece_like(first, False, special(*named.values()), GEMMA, **names, **named)


def gemma3():
    return gemma(image_token="<image_soft_token>")


def mistral():
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return sentencepiece_like(["<unk>", "<s>", "</s>"], True, [], MISTRAL, **names)


def mistral_v3():
    first = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"[control_{number}]" for number in range(8, 12))]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return sentencepiece_like(first, True, [], MISTRAL, **names)


def phi3():
    later = [
        "<|endoftext|>",
        "<|assistant|>",
        "<|placeholder1|>",
        "<|placeholder2|>",
        "<|system|>",
        "<|end|>",
        "<|user|>",
    ]
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    tokens = [AddedToken(token, rstrip=True, normalized=False, special=True) for token in later]
    return sentencepiece_like(["<unk>", "<s>", "</s>"], True, tokens, PHI3, **names)


@dataclass(frozen=True)
class Layout:
    """
    Attributes:
        make: builds the tokenizer.
        spare: rows of the embedding beyond the tokenizer's tokens; -1 for one token without a row.
        placeholder: the token that should be chosen.
        beyond: whether it should have no row.
        family, options: of the language model.
    """

    make: Callable[[], PreTrainedTokenizerFast]
    spare: int
    placeholder: str
    beyond: bool = False
    family: str = "llama"
    options: dict = field(default_factory=dict)

    def save(self, folder: Path) -> str:
        """Saves a language model and its tokenizer, as on the Hub."""
        tokenizer = self.make()
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        ids["bos_token_id"] = tokenizer.bos_token_id
        make_llm(self.family, len(tokenizer) + self.spare, **ids, **self.options).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


TIED = {"tie_word_embeddings": True}
LAYOUTS = {
    "falcon3": Layout(falcon3, 0, ">>UNUSED_1<<"),
    "smollm2": Layout(smollm2, 0, "<|audio|>", beyond=True, options=TIED),
    "qwen2.5": Layout(qwen2, 7, "<|audio|>", family="qwen2", options=TIED),
    "llama3": Layout(llama3, 0, "<|reserved_special_token_4|>"),
    "gemma": Layout(gemma, 0, "<unused5>", family="gemma", options=TIED),
    "gemma3": Layout(gemma3, -1, "<image_soft_token>", beyond=True, family="gemma", options=TIED),
    "mistral": Layout(mistral, 0, "<|audio|>", beyond=True, family="mistral"),
    "mistral v3": Layout(mistral_v3, 0, "[control_11]", family="mistral"),
    "phi3": Layout(phi3, 3, "<|placeholder2|>", family="phi3"),
}
