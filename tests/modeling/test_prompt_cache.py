"""A chat turn computes only its new part, and gets the same answer as without a cache."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_llm, make_processor, make_whisper, question, tone
from transformers import DynamicCache, GenerationConfig, TextStreamer, pipeline

from falcon3_audio import (
    LORA_TARGET_MODULES,
    AudioTextToTextPipeline,
    Falcon3AudioForConditionalGeneration,
    Falcon3AudioProcessor,
    pipeline_falcon3_audio,
)
from falcon3_audio.prompt_cache_falcon3_audio import PromptCache, can_be_cropped, content_of
from falcon3_audio.releases_falcon3_audio import CACHE


# A checkpoint whose answers depend on every clip and word.

CLIPS = {"a": tone(0.5, 300), "b": tone(1.3, 1000), "c": tone(1.3, 2000)}
ANSWER = {"max_new_tokens": 8, "do_sample": False}


class Spied:
    """A pipeline, with the tokens of its last answer and the positions and audio windows computed for it."""

    def __init__(self, folder, **options):
        self.pipe = pipeline("audio-text-to-text", model=folder, **(ANSWER | options))
        model, self.settings = self.pipe.model, {}
        self.positions, self.windows = [], []
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: self.positions.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        model.model.audio_tower.register_forward_pre_hook(lambda module, args: self.windows.append(len(args[0])))
        generate = model.generate

        def keep(**kwargs):
            self.settings = kwargs
            output = generate(**kwargs)
            self.prompt = kwargs["input_ids"][0].tolist()
            self.tokens = getattr(output, "sequences", output).tolist()
            return output

        model.generate = keep

    def __call__(self, *args, **options):
        self.positions.clear()
        self.windows.clear()
        return self.pipe(*args, **options)

    @property
    def kept_tokens(self) -> int:
        """Counted from the memory held: float32, 2 layers, 2 key-value heads of 12."""
        layers = [layer for _, cache in self.pipe._prompt_cache._chats for layer in cache.layers]
        memory = sum(part.untyped_storage().nbytes() for layer in layers for part in (layer.keys, layer.values))
        return memory // (2 * 2 * 2 * 12 * 4)


@pytest.fixture(scope="module")
def plain(sensitive):
    return Spied(sensitive)


@pytest.fixture(scope="module")
def caching(sensitive):
    return Spied(sensitive, prompt_cache_tokens=1000)


@pytest.fixture(autouse=True)
def nothing_known(caching):
    caching.pipe.forget_audio()


def common(first: list, second: list) -> int:
    """The length of the common prefix of two prompts."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


def ask(caching, plain, chat, **options) -> list:
    """The chat with the answer, which must be the same with and without the cache."""
    chats = caching(chat, return_full_text=True, **options)[0]["generated_text"]
    plain(chat, **options)
    assert caching.tokens == plain.tokens
    return chats


def test_four_turns_with_clips(caching, plain):
    chat = question(CLIPS["a"], CLIPS["b"], text="Which is louder?")
    known: list[int] = []
    for turn, new in enumerate(
        [question(text="Why?"), question(CLIPS["c"], text="And this?"), question(text="Sure?")]
    ):
        chat = [*ask(caching, plain, chat), *new]
        shared = common(known, caching.prompt)
        assert caching.positions == [len(caching.prompt) - shared, *[1] * 7]
        assert plain.positions == [len(caching.prompt), *[1] * 7]
        assert (shared > 40) == (turn > 0)  # the two clips take 46 tokens
        known = caching.tokens[0][:-1]  # the last token was generated, but never an input
    ask(caching, plain, chat)
    assert caching.positions[0] == len(caching.prompt) - common(known, caching.prompt) < 40


def test_clips_that_are_held_are_not_encoded_again(sensitive, plain):
    """Even if only the prompt cache keeps them."""
    caching = Spied(sensitive, prompt_cache_tokens=1000, audio_cache_tokens=0)
    chat = [*ask(caching, plain, question(CLIPS["a"])), *question(CLIPS["b"])]
    assert caching.windows == [1]
    chat = [*ask(caching, plain, chat), *question(text="Why?")]
    assert caching.windows == [1]
    ask(caching, plain, chat)
    assert caching.windows == []
    # A cached prefix that ends within a clip: the rest of that clip is inserted.
    small = Spied(sensitive, prompt_cache_tokens=30, audio_cache_tokens=0)
    for _ in range(2):
        ask(small, plain, question(CLIPS["a"], CLIPS["b"]))
    assert small.positions[0] == len(small.prompt) - 30 and small.windows == [1]


def test_the_same_question_again_computes_its_last_token(caching, plain):
    ask(caching, plain, question(CLIPS["a"]))
    ask(caching, plain, question(CLIPS["a"]))
    assert caching.positions == [1] * 8


def test_words_only(caching, plain):
    chat = [*ask(caching, plain, question(text="Hello?")), *question(text="Why?")]
    known = caching.tokens[0]
    ask(caching, plain, chat)
    assert caching.positions[0] == len(caching.prompt) - common(known[:-1], caching.prompt) < len(caching.prompt) - 10


def test_an_earlier_turn_was_changed(caching, plain):
    chat = ask(caching, plain, [*question(CLIPS["b"]), {"role": "assistant", "content": "a"}, *question(text="Why?")])
    known = caching.tokens[0][:-1]
    chat[1]["content"] = "b"
    ask(caching, plain, [*chat, *question(text="Where?")])
    shared = common(known, caching.prompt)
    assert caching.positions[0] == len(caching.prompt) - shared
    assert caching.pipe.tokenizer.decode(caching.prompt[shared]) == "b"


@pytest.mark.parametrize("place", [0, 1])
def test_another_clip_of_equal_length(caching, plain, place):
    clips = [CLIPS["a"], CLIPS["a"]]
    clips[place] = CLIPS["b"]
    ask(caching, plain, question(*clips))
    known = caching.prompt
    clips[place] = CLIPS["c"]
    ask(caching, plain, question(*clips))
    assert caching.prompt == known
    before = known.index(caching.pipe.model.config.audio_token_id) + 13 * place
    assert caching.positions[0] == len(known) - before


def test_two_clips_of_a_kind(caching, plain):
    """The same clip once, twice, then once."""
    for times in (1, 2, 1):
        ask(caching, plain, question(*[CLIPS["a"]] * times))


def test_chats_that_take_turns(caching, plain):
    """They share a prefix, and neither overwrites the other's own part."""
    system = {"role": "system", "content": "Say what you hear in the sounds."}
    chats = [[system, *question(CLIPS[name])] for name in "bc"]
    for turn in range(3):
        for index, chat in enumerate(chats):
            chats[index] = [*ask(caching, plain, chat), *question(text="Why?")]
            assert caching.positions[0] < 40 or turn == 0
    assert caching.kept_tokens < sum(len(caching.prompt) for _ in chats) + 16


def test_an_answer_that_ends_and_a_begun_one(caching, plain):
    ask(caching, plain, question(CLIPS["a"]))
    end = caching.tokens[0][-5]
    chat = ask(caching, plain, question(CLIPS["a"]), eos_token_id=end)
    assert len(caching.positions) < 8
    ask(caching, plain, [*chat, *question(text="Why?")])
    assert caching.positions[0] < 40
    ask(caching, plain, [*question(CLIPS["a"]), {"role": "assistant", "content": "It is "}])
    assert caching.positions[0] < 10


def test_sampling_and_processors_of_logits(caching, plain):
    chat = question(CLIPS["a"])
    for _ in range(2):
        for pipe in (caching, plain):
            torch.manual_seed(1)
            answer = pipe(chat, do_sample=True, top_k=5, repetition_penalty=1.5, return_full_text=True)
        assert caching.tokens == plain.tokens
        chat = [*answer[0]["generated_text"], *question(text="Why?")]
    assert caching.positions[0] < 40


def test_streaming(caching, plain):
    class Streamer(TextStreamer):
        text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    chat = question(CLIPS["a"])
    for _ in range(2):
        streamer = Streamer(caching.pipe.tokenizer, skip_prompt=True)
        chat = caching(chat, streamer=streamer, return_full_text=True)[0]["generated_text"]
        assert streamer.text == chat[-1]["content"] == plain(chat[:-1])[0]["generated_text"]
        chat += question(text="Why?")
    assert caching.positions[0] < 40


def test_an_answer_that_was_interrupted(caching, plain):
    class Stops(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            raise KeyboardInterrupt

    chat = [*ask(caching, plain, question(CLIPS["a"])), *question(text="Why?")]
    with pytest.raises(KeyboardInterrupt):
        caching(chat, streamer=Stops(caching.pipe.tokenizer))
    ask(caching, plain, chat)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=8)},
        {"processor_kwargs": {"padding": "max_length", "max_length": 99}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_where_it_is_not_used(caching, plain, options):
    chat = [*ask(caching, plain, question(CLIPS["a"])), *question(text="Why?")]
    for spied in (caching, plain):
        torch.manual_seed(0)
        spied(chat, **options)
    assert CACHE not in caching.settings and caching.positions == plain.positions
    assert caching.tokens == plain.tokens
    ask(caching, plain, chat)  # the cache is unchanged
    assert caching.positions[0] < 40


def test_it_is_not_used_with_beams_that_the_model_sets(caching, plain, monkeypatch):
    for spied in (caching, plain):
        monkeypatch.setattr(spied.pipe.model.generation_config, "num_beams", 2)
    ask(caching, plain, question(CLIPS["a"]))
    assert CACHE not in caching.settings
    ask(caching, plain, question(CLIPS["a"]), num_beams=1)
    assert CACHE in caching.settings


def test_prompts_without_a_mask(caching, plain):
    ask(caching, plain, question(CLIPS["a"]), processor_kwargs={"return_attention_mask": False})


def test_batches_do_without(caching, plain):
    clips, options = [CLIPS["a"], CLIPS["b"]], {"text": "What?", "sampling_rate": 16_000}
    for spied in (caching, plain):
        spied(clips, batch_size=2, **options)
    assert caching.tokens == plain.tokens and caching.positions == plain.positions
    for spied in (caching, plain):
        spied(clips, **options)  # one by one
    assert caching.tokens == plain.tokens and CACHE in caching.settings


def test_a_cache_or_an_assistant_of_ones_own(caching, plain):
    ask(caching, plain, question(CLIPS["a"]))
    own = DynamicCache(config=caching.pipe.model.config.text_config)
    caching(question(CLIPS["a"]), **{CACHE: own})
    assert caching.settings[CACHE] is own and caching.tokens == plain.tokens
    assert own.get_seq_length() == len(caching.tokens[0]) - 1
    words = question(text="Hello?")
    ask(caching, plain, words)
    caching(words, assistant_model=make_llm())
    assert CACHE not in caching.settings and caching.tokens == plain.tokens


def test_the_bound(sensitive, plain):
    """The least recently used chat is evicted; only the beginning of a chat that is too long is kept."""
    caching = Spied(sensitive, prompt_cache_tokens=150)
    chats = [question(CLIPS[name], text="What is it?") for name in "abc"]  # 40 to 70 tokens each, including the answer
    for chat in chats:
        ask(caching, plain, chat)
        assert 0 < caching.kept_tokens <= 150
    ask(caching, plain, chats[2])
    assert caching.positions[0] == 1
    ask(caching, plain, chats[0])
    assert caching.positions[0] > 20
    for clip in (CLIPS["b"], CLIPS["c"]) * 3:
        ask(caching, plain, question(*[clip] * 5))
        assert caching.kept_tokens <= 150
    ask(caching, plain, question(*[clip] * 5))
    assert caching.positions[0] == len(caching.prompt) - 150 and caching.kept_tokens == 150


def test_other_weights_begin_anew(sensitive):
    caching = Spied(sensitive, prompt_cache_tokens=1000)
    caching(question(CLIPS["a"]))
    before = caching.tokens
    with torch.no_grad():
        for layer in caching.pipe.model.model.language_model.layers:
            layer.self_attn.v_proj.weight.mul_(-1)
    caching(question(CLIPS["a"]))
    assert caching.positions[0] == len(caching.prompt) and caching.tokens != before
    caching(question(CLIPS["a"]))
    assert caching.positions[0] == 1
    caching.pipe.forget_audio()
    assert caching.kept_tokens == 0
    caching(question(CLIPS["a"]))
    assert caching.positions[0] == len(caching.prompt) and caching.windows == [1]


def test_off_by_default(plain):
    plain(question(CLIPS["a"]))
    assert plain.pipe._prompt_cache is None and CACHE not in plain.settings
    plain.pipe.forget_audio()


def test_a_language_model_with_a_sliding_window(monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(pipeline_falcon3_audio.logger, "warning", warnings.append)
    llm = make_llm("mistral", sliding_window=8)
    model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(), llm, audio_token_id=1).eval()
    assert not can_be_cropped(model)
    made = [
        AudioTextToTextPipeline(model=model, processor=make_processor(vocab_size=300), **options)
        for options in ({"prompt_cache_tokens": 1000}, {})
    ]
    chat = question(CLIPS["a"])
    for _ in range(2):
        answers = [pipe(chat, return_full_text=True, **ANSWER)[0]["generated_text"] for pipe in made]
        assert answers[0][-1] == answers[1][-1]
        chat = [*answers[0], *question(text="Why?")]
    assert made[0]._prompt_cache is None
    assert len(warnings) == 1 and "`prompt_cache_tokens=1000` has no effect" in warnings[0]


def test_positions_that_depend_on_the_length():
    """The cached states of a short prompt differ from those of a longer one."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    for options, cropped in (({}, True), ({"rope_parameters": dynamic}, False)):
        llm = make_llm(**options)
        assert can_be_cropped(llm) is cropped


def test_a_processor_that_does_not_fit_is_named(sensitive):
    processor = copy.deepcopy(Falcon3AudioProcessor.from_pretrained(sensitive))
    processor.pooling_window = 1
    made = pipeline("audio-text-to-text", model=sensitive, processor=processor, prompt_cache_tokens=100, **ANSWER)
    with pytest.raises(ValueError, match="hold 25 audio tokens .* gives 13"):
        made(question(CLIPS["a"]))


def test_weights_that_an_adapter_was_merged_into(sensitive):
    """PEFT writes through `weight.data`, so no version counter sees the change."""
    pipe = pipeline("audio-text-to-text", model=sensitive, prompt_cache_tokens=1000, **ANSWER)
    before = pipe(question(CLIPS["a"]))
    settings = LoraConfig(target_modules=LORA_TARGET_MODULES["language_model"], lora_alpha=64, init_lora_weights=False)
    get_peft_model(pipe.model, settings).merge_and_unload()
    fresh = pipeline("audio-text-to-text", model=pipe.model, processor=pipe.processor, **ANSWER)
    assert pipe(question(CLIPS["a"])) == fresh(question(CLIPS["a"])) != before


# The cache by itself.


def filled(model, length: int) -> DynamicCache:
    """A cache of `length` positions, each holding its own index."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    numbers = torch.arange(float(length))[None, None, :, None].expand(1, 2, length, 12)
    for layer in range(2):
        cache.update(numbers, -numbers, layer)
    return cache


def test_what_is_taken_is_the_longest_common_beginning(model):
    cache = PromptCache(model, max_tokens=100)
    cache.put([1, "x", "x", 2, 3, 4], filled(model, 5))
    cache.put([1, "x", "x", 7], filled(model, 3))
    taken = cache.take([1, "x", "x", 2, 9, 9])
    for layer in taken.layers:
        assert layer.keys[0, 1, :, 0].tolist() == [0, 1, 2, 3] and layer.values[0, 0, :, 3].tolist() == [0, -1, -2, -3]
    assert cache.take([1, "x", "x", 2, 3]).get_seq_length() == 3  # the longer one was taken out above
    assert cache.take([1, "x", "x", 2, 3]).get_seq_length() == 0
    assert cache.take([2]).get_seq_length() == 0


def test_a_beginning_is_copied(model):
    cache = PromptCache(model, max_tokens=100)
    cache.put(list(range(10)), filled(model, 9))
    taken = cache.take([0, 1, 2, 77])
    assert taken.get_seq_length() == 3
    taken.layers[0].keys.zero_()
    assert cache.take(list(range(10))).layers[0].keys[0, 0, :, 0].tolist() == list(range(9))


def test_content():
    ids = [5, 1, 1, 6, 1, 1, 1, 7]
    assert content_of(ids, 1, ["x", "y"], [2, 3]) == [5, "x", "x", 6, "y", "y", "y", 7]
    assert content_of(ids, 0, [], []) == ids


def test_threads_share_a_cache(switch_often):
    """2,000 chats with a common prefix: a taken cache always matches the beginning of its prompt."""
    model = make_llm()
    prompts = PromptCache(model, max_tokens=60)
    layers = range(model.config.num_hidden_layers)

    def states(tokens: list) -> torch.Tensor:
        """Keys that contain the ids of their tokens."""
        return torch.tensor(tokens, dtype=torch.float32)[None, None, :, None].expand(1, 1, -1, 4)

    def ask(call: int) -> bool:
        content = [1, 2, call % 3, *range(call % 7), call % 5]
        cache = prompts.take(content)
        length = cache.get_seq_length()
        kept = [cache.layers[layer].keys for layer in layers] if length else []
        right = length < len(content) and all(torch.equal(keys, states(content[:length])) for keys in kept)
        for layer in layers:
            cache.update(states(content[length:]), states(content[length:]), layer)
        prompts.put([*content, 9], cache)
        if call % 50 == 0:
            prompts.clear()
        return right

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(2000))) == 2000
    assert sum(len(known) for known, _ in prompts._chats) <= 60
