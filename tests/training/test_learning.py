"""What is trained: full towers, last layers, LoRA by name and rank, learning rates by part; and that runs save it."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from training_runs import farthest, parse, weights_of
from transformers import AutoModelForMultimodalLM

from falcon3_audio.training import sft
from falcon3_audio.training.arguments import LoraArguments, ModelArguments
from falcon3_audio.training.learning import choose_trained_weights, part_of
from falcon3_audio.training.model import load_model
from falcon3_audio.training.publishing.merge import load_merged, merge
from falcon3_audio.training.publishing.run_facts import facts_of_run


PROJECTOR = "model.multi_modal_projector."
NEVER = "model.audio_tower.embed_positions.weight"  # Whisper's sinusoids
LAST_ENCODER, LAST_TEXT = "model.audio_tower.layers.1.", "model.language_model.layers.1."


@pytest.fixture
def load(checkpoint, tmp_path):
    def load(**options):
        return load_model(ModelArguments(**({"model": checkpoint, "dtype": "float32"} | options)), tmp_path)[0]

    return load


@pytest.fixture
def launch(recipe, tmp_path):
    """Trains two steps; returns the trainer."""

    def launch(*options):
        given = ("--config", recipe, "--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--lora_dropout", "0")
        return sft.train(*parse(*given, *options))

    return launch


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        (("--lora_audio_tower", "full", "--lora_language_model", "full"), lambda name: name != NEVER),
        (
            ("--lora_audio_tower", "full", "--audio_tower_trainable_layers", "1", "--lora_language_model", "none"),
            lambda name: name.startswith((PROJECTOR, LAST_ENCODER)),
        ),
        (
            ("--lora_audio_tower", "full", "--lora_language_model", "qv"),
            lambda name: (
                name.startswith((PROJECTOR, "model.audio_tower."))
                and name != NEVER
                or name.endswith(("q_proj.weight", "v_proj.weight"))
            ),
        ),
        (
            ("--lora_audio_tower", "none", "--lora_language_model", "full", "--language_model_trainable_layers", "1"),
            lambda name: name.startswith((PROJECTOR, LAST_TEXT)),
        ),
        (
            (
                "--lora_language_model",
                "full",
                "--language_model_trainable_layers",
                "1",
                "--lora_target_modules",
                "fc1",
            ),
            lambda name: name.startswith((PROJECTOR, LAST_TEXT)) or name.endswith("fc1.weight"),
        ),
        (
            ("--lora_target_modules", "q_proj", "mlp.up_proj", "--use_dora", "true", "--lora_r_audio_tower", "2"),
            lambda name: name.startswith(PROJECTOR) or name.endswith(("q_proj.weight", "mlp.up_proj.weight")),
        ),
    ],
    ids=[
        "full",
        "last encoder layer",
        "encoder and LoRA",
        "last text layer",
        "last text layer and LoRA",
        "DoRA by name",
    ],
)
def test_what_learns_is_what_a_merged_run_has(launch, tmp_path, capsys, options, learns):
    """And nothing else. The merged model is the trained one."""
    trainer = launch(*options)
    run = tmp_path / "run"
    before = weights_of(run / "base")
    after = weights_of(merge(run, tmp_path / "merged"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # A key bias never changes attention, because softmax cancels it; the embedding of an unused token stays.
    expected = {name for name in before if learns(name)}
    assert moved <= expected and all(name.endswith("k_proj.bias") for name in expected - moved)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch = {name: value for name, value in batch.items() if not name.startswith("num_")}
    with torch.no_grad():
        ours, theirs = (model.eval()(**batch).logits for model in (trainer.model, load_merged(run)))
    assert torch.allclose(ours, theirs, atol=1e-4)
    facts = facts_of_run(run, tmp_path / "merged", "ORG/NAME")
    assert facts["training"]["settings"]["layers with LoRA, encoder"] == parse_choice(options)
    assert "frozen" not in capsys.readouterr().out.split("multi_modal_projector")[1].splitlines()[0]


def parse_choice(options):
    return options[options.index("--lora_audio_tower") + 1] if "--lora_audio_tower" in options else "all"


def test_rank_and_names_reach_the_layers(load):
    arguments = LoraArguments(lora_r=4, lora_r_audio_tower=2, lora_target_modules=["q_proj"], use_rslora=True)
    model = load()
    model = get_peft_model(model, choose_trained_weights(model, arguments))
    found = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    encoder = {f"model.audio_tower.layers.{n}.self_attn.q_proj": (2, 16 / 2**0.5) for n in range(2)}
    text = {f"model.language_model.layers.{n}.self_attn.q_proj": (4, 8.0) for n in range(2)}
    assert found == encoder | text


def test_names_and_layers_that_are_not_there(load):
    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            choose_trained_weights(load(), LoraArguments(**options))

    refused("lora_target_modules: q_prj is not a layer of the audio_tower, which has", lora_target_modules=["q_prj"])
    refused("none of them is not a layer of the audio_tower", lora_target_modules=["up_proj"])
    refused(
        "audio_tower_trainable_layers=3 is more than the 2 layers",
        lora_audio_tower="full",
        audio_tower_trainable_layers=3,
    )
    model = load()
    model.is_quantized = True
    full = LoraArguments(lora_audio_tower="none", lora_language_model="full")
    with pytest.raises(ValueError, match="load_in_4bit freezes the language model's layers"):
        choose_trained_weights(model, full)


def test_what_learns_in_full_is_float32(load):
    for others in ("qv", "none"):
        model = load(dtype="bfloat16")
        config = choose_trained_weights(model, LoraArguments(lora_audio_tower="full", lora_language_model=others))
        model = model if config is None else get_peft_model(model, config)
        for name, weight in model.named_parameters():
            if "original_module" not in name:
                assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16), name


def test_in_bfloat16(launch, tmp_path):
    """A full encoder and DoRA's magnitudes are trained in float32; everything is merged to bfloat16."""
    options = ("--dtype", "bfloat16", "--bf16", "true", "--lora_audio_tower", "full", "--use_dora", "true")
    trainer = launch(*options)
    assert all(weight.dtype == torch.float32 for weight in trainer.model.parameters() if weight.requires_grad)
    merged = weights_of(merge(tmp_path / "run", tmp_path / "merged"))
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}


def test_each_part_has_its_rate(launch):
    trainer = launch("--audio_tower_learning_rate", "0", "--projector_learning_rate", "1e-3", "--weight_decay", "0.1")
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    rates = {part_of(names[id(weight)]): group["initial_lr"] for group in groups for weight in group["params"]}
    assert rates == {"audio_tower": 0, "multi_modal_projector": 1e-3, "language_model": 1e-2}
    assert groups[0]["initial_lr"] == 1e-2  # the rate in the log
    decays = {names[id(weight)]: group["weight_decay"] for group in groups for weight in group["params"]}
    assert len(decays) == sum(weight.requires_grad for weight in trainer.model.parameters())
    without = {name for name, decay in decays.items() if decay == 0}
    assert without == {name for name in decays if name.endswith("bias") or ".norm_" in name}
    weights = weights_of(Path(trainer.args.output_dir))
    still = [name for name in weights if "audio_tower" in name and "lora_B" in name]
    assert still and not any(weights[name].any() for name in still)


def test_a_former_run_is_a_model_to_begin_with(finished_run, recipe, tmp_path, capsys):
    """Its adapter is merged into the new run's base, which is then like any other; the run resumes like any other."""
    former, run = Path(finished_run.args.output_dir), tmp_path / "run"
    options = (
        "--config",
        recipe,
        "--model",
        str(former),
        "--output_dir",
        str(run),
        "--max_steps",
        "2",
        "--lora_r",
        "4",
    )
    assert sft.main([*options, "--save_steps", "1"]) == 0
    merged = weights_of(merge(former, tmp_path / "former"))
    assert farthest(weights_of(run / "base"), merged) == 0
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run / "base")
    after = weights_of(merge(run, tmp_path / "after"))
    assert after.keys() == merged.keys() and farthest(after, merged) > 0
    for path in (run / "checkpoint-2").iterdir():
        path.unlink()
    assert sft.main(list(options)) == 0
    assert farthest(weights_of(merge(run, tmp_path / "again")), after) <= 1e-6
    assert AutoModelForMultimodalLM.from_pretrained(run / "base").config.model_type == "falcon3_audio"


def test_more_epochs_of_a_run_that_has_ended(launch, tmp_path, recipe, capsys):
    launch()
    run = tmp_path / "run"
    assert sft.main(["--config", recipe, "--output_dir", str(run), "--lora_dropout", "0", "--max_steps", "4"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "(max_steps: 2 -> 4). It is finished, and so is its schedule" in said
    assert f"`--model {run} --output_dir ANOTHER`" in said
