"""GRPO after supervised fine-tuning, on questions with a known answer (as R1-AQA did on Qwen2-Audio).

TRL's GRPOTrainer collects only images, so it would score the answers without the audio. `AudioGRPOTrainer` passes the
audio of every prompt to generation and to each log-probability pass (policy, old policy, reference), and checks that
the scored rows match the prompts whose audio it holds.

    python -m falcon3_audio.training.grpo --config training/recipes/audio_world_grpo.yaml
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import trl
from datasets import Dataset
from jinja2 import TemplateError
from trl import GRPOConfig, GRPOTrainer

from falcon3_audio.processing import Falcon3AudioProcessor

from .after_sft import AfterSFT, print_plan
from .arguments import DataArguments, LoraArguments, ModelArguments
from .callbacks import SaveAtSigterm
from .checks import check_sound_everywhere, check_together
from .collator import AUDIO_INPUTS, join_audio
from .data.sources import DataSource
from .data.training_sets import load_training_data, set_of
from .data_digests import data_digests
from .distributed import leave_group
from .generated import choices_of, prompt_and_answer, right_option
from .learning import choose_trained_weights
from .model import check_loss, disable_functional_dropout, train_in_float32
from .recipe import run_recipe
from .rewards import TAGS_REQUEST, content_answer, load_rewards, words
from .run_folder import describe_recipe
from .running import begin_with_model, run_and_save


# TRL has no public hook for extra model inputs, so `AudioGRPOTrainer` overrides these private methods. They are listed
# with their leading parameters as in the release this was written against, and compared before training.
TRL_VERSION = "1.16"
OVERRIDDEN = {
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_get_per_token_logps_and_entropies": [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ],
}


class EncodedPrompt(NamedTuple):
    """A prompt as the processor encodes it."""

    ids: list[int]
    audio: dict[str, torch.Tensor]
    """`input_features` (clips, mel bands, frames) and `input_features_mask` (clips, frames); empty without audio."""


class AudioGRPOTrainer(AfterSFT, GRPOTrainer):
    """
    TRL's `GRPOTrainer` for Falcon3-Audio. The dataset's `prompt` is a chat as `Falcon3AudioProcessor` takes it, with
    the source of each audio in its item; prompts with one clip, several, or none can be mixed, unless FSDP or
    DeepSpeed shards the model (checks.py). Reward functions get the prompts without the sources, and every other
    column of the dataset by its name.

    Args:
        model (`Falcon3AudioForConditionalGeneration` or `PeftModel`): The policy. The reference of `beta > 0` is, as in
            TRL, the model without its adapter (with `peft_config`), its adapter as it was at the start (`PeftModel`),
            or the checkpoint it was loaded from (neither).
        processing_class (`Falcon3AudioProcessor`): The model's processor.
        **options: As for `GRPOTrainer`.

    Raises:
        `ValueError`: for what does not support audio (another processor, vLLM, tools, environments, custom rollouts);
        in
            training, for a prompt that the chat template rejects or whose audio cannot be used; names its `origin`.
        `RuntimeError`: if this TRL differs from the one this was written for.
    """

    def __init__(self, model: torch.nn.Module, *, processing_class: Falcon3AudioProcessor, **options: Any):
        _check_trl()
        if not isinstance(model, torch.nn.Module) or not isinstance(processing_class, Falcon3AudioProcessor):
            raise ValueError(
                "`model` must be a loaded model and `processing_class` the Falcon3AudioProcessor saved with it, got "
                f"{type(model).__name__} and {type(processing_class).__name__}."
            )
        unsupported = [name for name in ("tools", "environment_factory", "rollout_func") if options.get(name)]
        unsupported += ["use_vllm"] if getattr(options.get("args"), "use_vllm", False) else []
        if unsupported:
            raise ValueError(f"got {', '.join(unsupported)}, which would generate without the audio; leave it out.")
        self._encoded: list[EncodedPrompt] = []
        # TRL has another name for the token that must never be sampled. Removed again, since the config is saved.
        model.config.image_token_id = model.config.audio_token_id
        try:
            super().__init__(model, processing_class=processing_class, **options)
        finally:
            del model.config.image_token_id
        train_in_float32(self.model)

    def training_step(self, *args, **kwargs):
        if self._step == 0:  # TRL counts from 0 after a resume too, which would shift when answers are generated
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super().training_step(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._encoded = [self._encode(row) for row in inputs]
        # TRL copies prompts, gathers them from all processes and logs them, so the audio must not be in them.
        inputs = [row | {"prompt": _without_sources(row["prompt"])} for row in inputs]
        # Answers must be sampled from the policy in the precision in which it is scored and trained; and generation
        # encodes the audio outside the model's forward, and accelerate applies autocast only to that.
        with self.accelerator.autocast():
            output = super()._generate_and_score_completions(inputs)
        # TRL shuffles and splits a list with one entry per row like the other outputs.
        output["encoded_prompts"] = self._encoded
        return output

    def _encode(self, row: dict[str, Any]) -> EncodedPrompt:
        try:
            batch = self.processing_class.apply_chat_template(
                row["prompt"],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"truncation": False},  # of audio: a clip over the processor's limit is an error
                **cast(dict[str, Any], self.chat_template_kwargs),
            )
        except (ValueError, TypeError, TemplateError) as error:
            raise ValueError(f"{row.get('origin', 'A prompt')}: {error}") from error
        return EncodedPrompt(
            batch["input_ids"][0].tolist(), {name: batch[name] for name in AUDIO_INPUTS if name in batch}
        )

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        _expect(len(prompts) == len(self._encoded), "it generates for other prompts than it was given")
        audio = join_audio([prompt.audio for prompt in self._encoded])
        return [prompt.ids for prompt in self._encoded], None, audio

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        _expect("encoded_prompts" in inputs, "the audio is lost between generation and loss")
        self._encoded = inputs["encoded_prompts"]
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        check_loss(loss, self.state.global_step)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **others,
    ):
        _expect(all(value is None for value in others.values()), f"there are more inputs to split: {others.keys()}")
        self._check_rows(input_ids, attention_mask)
        parts = []
        batch_size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), batch_size):
            rows = slice(start, start + batch_size)
            audio = join_audio([prompt.audio for prompt in self._encoded[rows]])
            audio = {name: tensor.to(input_ids.device) for name, tensor in audio.items()}
            parts.append(
                super()._get_per_token_logps_and_entropies(
                    partial(model, **audio),
                    input_ids[rows],
                    attention_mask[rows],
                    logits_to_keep,
                    compute_entropy=compute_entropy,
                    compute_aux_loss=compute_aux_loss,
                )
            )
        logps, entropies, aux_losses = zip(*parts)
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux_losses).mean() if compute_aux_loss else None,
        )

    def _check_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Every row must start with the prompt whose audio it will be scored with."""
        _expect(len(input_ids) == len(self._encoded), f"{len(input_ids)} rows for {len(self._encoded)} prompts")
        for ids, mask, prompt in zip(input_ids.cpu(), attention_mask.cpu(), self._encoded):
            got = ids[mask.bool()][: len(prompt.ids)].tolist()
            _expect(got == prompt.ids, "the rows are in another order than their audio")


def _without_sources(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        message
        if isinstance(message["content"], str)
        else message
        | {
            "content": [
                {"type": "audio"} if item["type"] == "audio" else {"type": "text", "text": item["text"]}
                for item in message["content"]
            ]
        }
        for message in prompt
    ]


def _check_trl() -> None:
    for name, expected in OVERRIDDEN.items():
        method = getattr(GRPOTrainer, name, None)
        found = list(inspect.signature(method).parameters) if method else []
        _expect(found[: len(expected)] == expected, f"GRPOTrainer.{name} takes {found}, not {expected}")


def _expect(as_expected: bool, otherwise: str) -> None:
    if not as_expected:
        raise RuntimeError(
            f"AudioGRPOTrainer was written for TRL {TRL_VERSION}; TRL {trl.__version__} is incompatible: {otherwise}. "
            f"Install trl=={TRL_VERSION}.*, or adapt the methods named in falcon3_audio.training.grpo.OVERRIDDEN."
        )


@dataclass
class RewardArguments:
    answer_tags: bool = field(
        default=False,
        metadata={
            "help": "Ask for the answer in <answer> </answer> tags and reward them too. Off: ask for the bare answer."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: exact (the answer's words), content (the right option, for rows with `choices`), format "
            "(the tags), or my_module.my_reward (default: exact, with answer_tags also format)."
        },
    )

    def __post_init__(self):
        if self.reward_funcs is None:
            self.reward_funcs = ["exact", "format"] if self.answer_tags else ["exact"]


@dataclass
class AudioGRPOConfig(GRPOConfig):
    """`trl.GRPOConfig` with three other defaults: the best step is that with the highest reward."""

    # With dropout every pass is a different policy, and none of them generated the answers.
    disable_dropout: bool = field(default=True, metadata={"help": "No dropout in policy and reference."})
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "tensorboard, wandb, trackio, none, ..."}
    )

    def __post_init__(self):
        # GRPO's loss is little more than the KL term, which is smallest for a model that has learned nothing.
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "reward", True
        super().__post_init__()


def load_questions(sources: Sequence[DataSource], answer_tags: bool, with_choices: bool = False) -> Dataset:
    """
    The examples of some sets (see `load_training_data`) as rows with `prompt`, the chat up to its last answer, `answer`,
    that answer, `choices`, the row's options, and `origin`. With `answer_tags` the prompt asks for the tags.

    Raises:
        `ValueError`: for a set that cannot be read or has a weight; and on reading, for a row without an answer, and
            `with_choices` for one without options, or whose answer is none of them.
    """
    for source in sources:
        if source.weight != 1:
            raise ValueError(f"GRPO asks every question once per epoch; leave out the weight of {source.path}.")
    sets = [load_training_data([source])[0] for source in sources]
    index = [(number, row) for number, examples in enumerate(sets) for row in range(len(examples))]
    columns = dict(zip(("set", "index"), map(list, zip(*index))))
    return Dataset.from_dict(columns).with_transform(_Questions(sets, answer_tags, with_choices))


class _Questions:
    """Turns indices into questions; given to `Dataset.with_transform`, so it runs where rows are read."""

    def __init__(self, sets: Sequence[Dataset], answer_tags: bool, with_choices: bool):
        self.sets, self.answer_tags, self.with_choices = sets, answer_tags, with_choices
        self.rows = [set_of(examples)[1] for examples in sets]
        self.places = [examples.with_format("numpy") for examples in sets]

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [self._read(*key) for key in zip(batch["set"], batch["index"])]
        return {name: [row[name] for row in rows] for name in ("prompt", "answer", "choices", "origin")}

    def _read(self, number: int, index: int) -> dict[str, Any]:
        example = self.sets[number][index]
        prompt, answer = prompt_and_answer(example)
        if not words(answer):
            raise ValueError(f"{example['origin']}: needs an answer with a word, got {answer!r}.")
        others = sorted({item["type"] for item in example["messages"][-1]["content"]} - {"text"})
        if others:
            raise ValueError(
                f"{example['origin']}: answers are compared as text, but this one also has {', '.join(others)}."
            )
        place = self.places[number][index]
        choices = choices_of(self.rows[number][int(place["row"])], int(place["question"]), example["origin"])
        if self.with_choices:
            if not choices:
                raise ValueError(f"{example['origin']}: the reward `content` needs options, in a column `choices`.")
            answer = right_option(answer, choices, example["origin"])
        if self.answer_tags:
            prompt[-1] = _with_request(prompt[-1])
        return {"prompt": prompt, "answer": answer, "choices": list(choices), "origin": example["origin"]}


def _with_request(message: dict[str, Any]) -> dict[str, Any]:
    """Appends to the last text item: chat templates can separate items by more than the request's leading space."""
    content = [dict(item) for item in message["content"]]
    texts = [item for item in content if item["type"] == "text"]
    if texts:
        texts[-1]["text"] += TAGS_REQUEST
    else:
        content.append({"type": "text", "text": TAGS_REQUEST.strip()})
    return message | {"content": content}


def train(
    model_args: ModelArguments,
    lora_args: LoraArguments,
    data_args: DataArguments,
    reward_args: RewardArguments,
    args: AudioGRPOConfig,
) -> AudioGRPOTrainer:
    """Runs a recipe from the start, or from its last checkpoint, and returns the trainer."""
    check_together(data_args, args)
    if args.push_to_hub:
        raise ValueError("push_to_hub is for `falcon3-audio train`; push the results of GRPO when it has finished.")
    rewards = load_rewards(reward_args.reward_funcs or [])
    kind = reward_args.answer_tags, content_answer in rewards
    questions = load_questions(data_args.train_data, *kind)
    held_out = load_questions(data_args.eval_data, *kind) if data_args.eval_data else None
    options = model_args, lora_args, data_args, reward_args, args
    recipe = describe_recipe(*options) | {"examples": len(questions)} | data_digests(data_args)
    with begin_with_model(args, model_args, recipe, options, samples_answers=True) as (checkpoint, model, processor):
        if args.disable_dropout:
            disable_functional_dropout(model)
        stopper = SaveAtSigterm()
        trainer = AudioGRPOTrainer(
            model,
            processing_class=processor,
            reward_funcs=rewards,
            args=args,
            train_dataset=questions,
            eval_dataset=held_out,
            peft_config=choose_trained_weights(model, lora_args),
            callbacks=[stopper],
        )
        check_sound_everywhere(data_args, trainer)
        if trainer.is_world_process_zero():
            answers = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            lines = {"a step": f"{answers} answers, {args.num_generations} to each prompt"}
            print_plan(trainer.model, lora_args, lines, checkpoint)
        run_and_save(trainer, checkpoint, stopper, "GRPO loss")
        return trainer


def main(arguments: list[str] | None = None) -> int:
    options = [ModelArguments, LoraArguments, DataArguments, RewardArguments, AudioGRPOConfig]
    return run_recipe(train, options, arguments, prog="falcon3-audio grpo")


if __name__ == "__main__":
    sys.exit(leave_group(main()))
