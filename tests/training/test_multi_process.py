"""Training in two processes on CPUs (gloo), started with the real configs, against the same recipe in one process.

DDP runs as two machines of one process each, FSDP2 (and DeepSpeed ZeRO-3, where it is installed) as one machine of two.
Each launch makes several runs one after another, because starting takes longest.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from accelerate.commands.config.config_args import load_config_from_file
from ports import free_port
from tiny import SAMPLING_RATE, tone
from training_runs import (
    CLIP_FEATURES,
    SETTINGS,
    assistant,
    clip_row,
    farthest,
    heard,
    history_of,
    log_of,
    user,
    weights_of,
    write_jsonl,
    write_recipe,
)

from falcon3_audio.training import model as model_module
from falcon3_audio.training import sft
from falcon3_audio.training.arguments import ModelArguments
from falcon3_audio.training.callbacks import EXIT_CODE
from falcon3_audio.training.data.sampler import MixtureSampler
from falcon3_audio.training.data.shards import write_shard


ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "training" / "accelerate"
SECONDS = [0.3, 0.7, None, 1.1, 0.5, 2.0, None, 0.9, 1.6, 0.4, None, 1.3]  # None: a chat without audio
BATCH, STEPS, STEPS_PER_EPOCH = 4, 6, 3
# bfloat16 has 8 significant bits, and FSDP computes norms and LoRA in it, which autocast leaves in float32.
TOLERANCE = {"whole": 1e-5, "packed": 1e-5, "half": 2**-7}
HALF = ["--dtype", "bfloat16", "--bf16", "true", "--max_steps", "2"]
# Clips with several questions, in rows that share audio and micro-batches of 70 tokens; a mean over the encoder's layers.
PACKED = ["--train_data", "FOLDER/clips.parquet", "--per_device_train_batch_size", "0", "--global_batch_size", "8"]
PACKED += ["--tokens_per_device", "70", "--max_steps", "3", "--activation_checkpointing", "true"]
PACKED += ["--use_weighted_layer_sum", "true"]
QUESTIONS = [5, 1, 4, 2, 1, 3]
# This run keeps its worst step, and trains the encoder in full.
BEST = ["--eval_data", "FOLDER/clips.parquet", "--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "4"]
BEST += ["--load_best_model_at_end", "true", "--greater_is_better", "true", "--lora_audio_tower", "full"]
BEST += ["--max_length", "400"]
ANSWERS = ["--eval_generate", "5"]
STREAMED = ["--config", "FOLDER/streamed.yaml", "--max_steps", "4", "--save_steps", "2"]


@dataclass
class Launch:
    strategy: str
    folder: Path
    output: str
    reports: list[dict]


@pytest.fixture(scope="module")
def recipe(backbone_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, seconds in enumerate(SECONDS):
        content = [{"type": "text", "text": f"What is sound {number}?"}]
        if seconds is not None:
            soundfile.write(folder / f"{number}.wav", tone(seconds, 300 + 50 * number), SAMPLING_RATE)
            content = [heard(f"{number}.wav"), *content]
        rows.append({"messages": [user(*content), assistant("a bell " * (1 + number % 3) + str(number))]})
    wavs = [folder / f"{number}.wav" for number, seconds in enumerate(SECONDS) if seconds is not None]
    clips = [clip_row(wav, questions) for wav, questions in zip(wavs, QUESTIONS)]
    write_shard(folder / "clips.parquet", clips, CLIP_FEATURES)
    (folder / "parts").mkdir()
    rows_from_there = json.loads(json.dumps(rows).replace('"path": "', '"path": "../'))
    for number in range(2):
        write_jsonl(folder / "parts" / f"{number}.jsonl", rows_from_there[number::2])
    write_recipe(
        folder / "streamed.yaml",
        extends="recipe.yaml",
        train_data=[{"path": str(folder / "parts"), "sound": "some", "streaming": True}],
    )
    audio, text = backbone_folders
    data = str(write_jsonl(folder / "chats.jsonl", rows))
    options = {"per_device_train_batch_size": 1, "global_batch_size": BATCH, "max_steps": STEPS, "lora_dropout": 0.0}
    return write_recipe(
        folder / "recipe.yaml",
        audio_model=audio,
        text_model=text,
        train_data=[{"path": data, "sound": "some"}],
        **(SETTINGS | options),
    )


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """The runs `whole`, `half`, `packed` and `best` in one process."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {"whole": [], "half": HALF, "packed": of(recipe, PACKED), "best": of(recipe, BEST + ANSWERS)}
    for name, options in runs.items():
        assert sft.main(["--config", recipe, "--output_dir", str(folder / name), *options]) == 0
    return folder


def of(recipe, options):
    return [option.replace("FOLDER", str(Path(recipe).parent)) for option in options]


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.fixture(scope="module", params=["ddp", "fsdp2", pytest.param("deepspeed_zero3", marks=needs_deepspeed)])
def launched(request, recipe, tmp_path_factory):
    """Runs `whole`, `resumed` from its fourth step, and more, in two processes."""
    strategy, folder = request.param, tmp_path_factory.mktemp(request.param)
    runs = {
        "whole": [],
        "resumed": ["--resume_from_checkpoint", f"{folder}/whole/checkpoint-4"],
        **({"half": HALF} if strategy == "fsdp2" else {}),
        "packed": of(recipe, PACKED),
        "best": of(recipe, BEST + (ANSWERS if strategy == "ddp" else [])),
        **(
            {
                "streamed": of(recipe, STREAMED),
                "streamed_on": [*of(recipe, STREAMED), "--resume_from_checkpoint", f"{folder}/streamed/checkpoint-2"],
            }
            if strategy == "ddp"
            else {}
        ),
        "ended": ["SIGTERM"],
        "on-RANK": [],  # the folder `whole` for the first process, none for the second
    }
    (folder / "on-0").symlink_to(folder / "whole")
    if strategy == "deepspeed_zero3":
        # With use_cpu, accelerate would silently use DDP.
        runs = {name: [*options, "--use_cpu", "false", "--ddp_backend", "gloo"] for name, options in runs.items()}
    commands = [["--config", recipe, "--output_dir", f"{folder}/{name}", *runs[name]] for name in runs]
    (folder / "runs.json").write_text(json.dumps(commands))
    machines = 2 if strategy == "ddp" else 1
    output = launch(
        CONFIGS / f"{strategy}.yaml", machines, [str(ROOT / "tests" / "several_processes.py"), str(folder)]
    )
    reports = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]
    assert [report["codes"] for report in reports] == [[0] * (len(runs) - 2) + [EXIT_CODE, 1]] * 2, output
    return Launch(strategy, folder, output, reports)


def launch(config: Path, machines: int, command: list[str]) -> str:
    """Runs `accelerate launch` for two processes, once per machine, and returns what they printed."""
    options = ["--config_file", str(config), "--num_processes", "2"]
    options += ["--num_machines", str(machines), "--main_process_ip", "127.0.0.1"]
    options += ["--main_process_port", str(free_port())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    started = [
        subprocess.Popen(
            [*launcher, "--machine_rank", str(rank), *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(machines)
    ]
    try:
        output = "\n".join(process.communicate(timeout=500)[0] for process in started)
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert all(process.returncode == 0 for process in started), output
    return output


def test_losses_and_weights_are_those_of_one_process(launched, alone):
    for name in ("whole", "packed", "half") if launched.strategy == "fsdp2" else ("whole", "packed"):
        run, expected = launched.folder / name, log_of(alone / name)
        assert len(expected) == {"whole": STEPS, "packed": 3, "half": 2}[name]
        for ours, theirs in zip_longest(log_of(run), expected):
            for key in ("loss", "grad_norm", "learning_rate"):
                assert ours[key] == pytest.approx(theirs[key], rel=TOLERANCE[name]), (name, key, ours["step"])
        if name == "half":
            assert "frozen weights bfloat16" in launched.output
            assert {weight.dtype for weight in weights_of(run).values()} == {torch.float32}
    for name in ("whole", "packed"):
        trained = weights_of(launched.folder / name)
        assert farthest(trained, weights_of(alone / name)) < 1e-5
    assert any("audio_tower" in key for key in trained) and any("multi_modal_projector" in key for key in trained)


def test_evaluations_are_those_of_one_process(launched, alone):
    """Twelve questions in batches of eight: two processes get four of them twice."""
    for name in ("whole", "packed"):
        (ours,), (theirs,) = (
            [entry for entry in history_of(folder / name) if "eval_train_loss" in entry]
            for folder in (launched.folder, alone)
        )
        assert ours.keys() == theirs.keys() and ours["eval_train_hearing"] != 0
        assert name == "packed" or "eval_train_hearing_low" in ours  # packed has too few clips that fit
        for key in ours:
            if not key.endswith(("_runtime", "_per_second")):
                assert ours[key] == pytest.approx(theirs[key], abs=1e-5), (name, key)


def test_the_best_step_is_that_of_one_process(launched, alone):
    """With a fully trained encoder; and, if each process has the whole model, with the same scores of its answers."""
    ours, theirs = (history_of(folder / "best") for folder in (launched.folder, alone))
    assert ours[-1]["loaded_step"] == theirs[-1]["loaded_step"] == 2
    assert ours[-1]["loaded_metric"] == pytest.approx(theirs[-1]["loaded_metric"], abs=1e-5)
    assert farthest(weights_of(launched.folder / "best"), weights_of(alone / "best")) < 1e-5
    assert farthest(weights_of(alone / "best"), weights_of(alone / "best" / "checkpoint-4")) > 1e-4
    if launched.strategy == "ddp":
        for name in ("eval_num_generated", "eval_exact_match", "eval_wer"):
            values = [[entry[name] for entry in history if name in entry] for history in (ours, theirs)]
            assert values[0] == values[1] and len(values[0]) == 2


def test_the_runs_compared_do_learn(alone):
    # Otherwise equal weights would prove little.
    log = log_of(alone / "whole")
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    assert farthest(weights_of(alone / "whole"), weights_of(alone / "whole" / "checkpoint-2")) > 1e-3


def test_the_model_ran_under_the_strategy(launched):
    wrappers = {
        "ddp": {"DistributedDataParallel"},
        # Every layer of both towers is its own unit, and so is the projector.
        "fsdp2": {"FSDPFalcon3AudioEncoderLayer", "FSDPLlamaDecoderLayer", "FSDPFalcon3AudioMultiModalProjector"},
        "deepspeed_zero3": {"DeepSpeedEngine"},
    }
    for report in launched.reports:
        assert wrappers[launched.strategy] <= set(report["classes"])


def test_resumed_in_the_second_epoch(launched):
    run = launched.folder / "resumed"
    assert STEPS_PER_EPOCH < 4 < STEPS and "2 to go of 6" in launched.output
    assert [entry["loss"] for entry in log_of(run)] == [entry["loss"] for entry in log_of(launched.folder / "whole")]
    assert farthest(weights_of(run), weights_of(launched.folder / "whole")) == 0


def test_a_stream_is_parted_and_gone_on_with(launched):
    """Four steps of four rows, two on each of two processes; then the last two steps again."""
    if launched.strategy != "ddp":
        pytest.skip("streams are read alike under all strategies")
    parts = [report["streamed"] for report in launched.reports]
    assert [len(part) for part in parts] == [8 + 4] * 2
    first = [set(part[:6]) for part in parts]  # a pass
    assert len(first[0]) == len(first[1]) == 6 and not first[0] & first[1]
    assert all(part[8:] == part[4:8] for part in parts)
    logs = [log_of(launched.folder / name) for name in ("streamed", "streamed_on")]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    assert farthest(*(weights_of(launched.folder / name) for name in ("streamed", "streamed_on"))) == 0


def test_the_batch_is_the_recipes_whatever_the_devices(launched):
    assert "batch                  4 questions: 1 on each of 2 device(s), 2 times" in launched.output
    arguments = torch.load(launched.folder / "whole" / "training_args.bin", weights_only=False)
    assert arguments.gradient_accumulation_steps == 2


def test_devices_without_sound_beside_devices_with_sound(launched, recipe):
    """DDP waits for the encoder's gradients from both, and does not look for unused weights."""
    sampler = MixtureSampler([len(SECONDS)], [1.0], seed=42)
    order = list(sampler)
    sampler.set_epoch(1)
    order += list(sampler)
    # Gradients are exchanged after the last two micro-batches of a step, one on each device.
    exchanged = [order[end - 2 : end] for end in range(BATCH, len(order) + 1, BATCH)]
    assert any(sum(SECONDS[number] is None for number in pair) == 1 for pair in exchanged)
    arguments = torch.load(launched.folder / "whole" / "training_args.bin", weights_only=False)
    assert arguments.seed == 42 and arguments.ddp_find_unused_parameters is False


def test_a_signal_to_one_process_ends_all_at_the_same_step(launched):
    """The last process got the signal in its first step; the saved step is the first one of the run `whole`."""
    assert launched.output.count("stopped by SIGTERM after step 1, which is saved") == 2
    (saved,) = launched.folder.glob("ended/checkpoint-*")
    assert saved.name == "checkpoint-1"
    assert [entry["loss"] for entry in log_of(saved)] == [log_of(launched.folder / "whole")[0]["loss"]]
    assert not (launched.folder / "ended" / "adapter_model.safetensors").exists()


def test_folders_that_are_not_shared(launched):
    text = "falcon3-audio train: The processes do not see the same checkpoints in"
    assert launched.output.count(text) == 2 and "(by rank: checkpoint-6, none)" in launched.output


def test_going_on_in_one_process(launched, recipe, alone, tmp_path, capsys):
    """DDP's checkpoints can be resumed in one process; those of other strategies are refused, not half read."""
    checkpoint = launched.folder / "whole" / "checkpoint-4"
    run = tmp_path / "run"
    code = sft.main(["--config", recipe, "--output_dir", str(run), "--resume_from_checkpoint", str(checkpoint)])
    if launched.strategy == "ddp":
        assert code == 0
        assert farthest(weights_of(run), weights_of(alone / "whole")) < 1e-5
    else:
        written = (
            f"written by {'FSDP' if launched.strategy == 'fsdp2' else 'DeepSpeed'}, but this run uses one process"
        )
        assert code == 1 and written in capsys.readouterr().err


def test_a_base_model_that_only_the_first_process_sees(backbone_folders, tmp_path, monkeypatch):
    audio, text = backbone_folders
    elsewhere = SimpleNamespace(is_main_process=False, process_index=1, wait_for_everyone=lambda: None)
    monkeypatch.setattr(model_module, "PartialState", lambda: elsewhere)
    with pytest.raises(ValueError, match="not visible to process 1.*all machines share"):
        model_module.load_model(ModelArguments(audio_model=audio, text_model=text), tmp_path)


def test_configs_name_their_strategy_and_leave_precision_to_the_recipe():
    kinds = {path.stem: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    assert {name: config.distributed_type.value for name, config in kinds.items()} == {
        "ddp": "MULTI_GPU",
        "fsdp2": "FSDP",
        "deepspeed_zero3": "DEEPSPEED",
    }
    assert (
        kinds["fsdp2"].fsdp_config["fsdp_version"] == 2
        and kinds["deepspeed_zero3"].deepspeed_config["zero_stage"] == 3
    )
    assert {config.mixed_precision for config in kinds.values()} == {"no"}
