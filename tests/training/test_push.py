"""Pushing to a Hub and loading from it with the real client: what arrives, in how many commits, and what is refused.

One process pushes, with HF_ENDPOINT set (read at import); others, which cannot import falcon3_audio, load.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import CUT, File, HubServer, Repo
from huggingface_hub import CommitInfo, ModelCard
from safetensors.torch import load
from tiny import SAMPLING_RATE, question, tone
from training_runs import SETTINGS, weights_of, write_recipe
from transformers import AutoProcessor

from falcon3_audio.evaluation.local_model import model_digest
from falcon3_audio.model_cards.results import NEEDED_OF_RUN
from falcon3_audio.training.publishing import merge as merging
from falcon3_audio.training.publishing import push
from falcon3_audio.training.publishing.merge import load_adapted, merge
from falcon3_audio.training.run_folder import local_names


# Runs the commands that it reads, one per line, and prints their exit codes and output.
WORKER = """
import contextlib, io, json, os, sys
from huggingface_hub import constants
from falcon3_audio.training import sft
from falcon3_audio.training.publishing import push
for line in sys.stdin:
    call = json.loads(line)
    os.environ["HF_TOKEN"], push.SHARD_SIZE, constants.ENDPOINT = call["token"], call["shard_size"], call["endpoint"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as error:
        code = {"push": push.main, "train": sft.main}[call["verb"]](call["arguments"])
    print(json.dumps([code, said.getvalue(), error.getvalue()]), flush=True)
"""
# Runs an adapter's repository, as loaded by transformers and by PEFT, with its processor.
ASK_ADAPTERS = """
import json, sys
sys.modules["falcon3_audio"] = None
import numpy as np
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor
clip, base, *adapters = sys.argv[1:]
for name in adapters:
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    item = {"type": "audio", "audio": np.load(clip), "sampling_rate": 16000}
    chat = [{"role": "user", "content": [item, {"type": "text", "text": "What do you hear?"}]}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    alone = AutoModelForMultimodalLM.from_pretrained(name, trust_remote_code=True)
    loaded = AutoModelForMultimodalLM.from_pretrained(base, trust_remote_code=True)
    for model in (alone, PeftModel.from_pretrained(loaded, name)):
        tokens = model.eval().generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        print("RESULT", json.dumps([name, tokens[0, inputs["input_ids"].shape[1]:].tolist()]))
"""
CODE = {f"{name}_falcon3_audio.py" for name in ("configuration", "modeling", "processing", "pipeline")}


@pytest.fixture(scope="module")
def hub():
    with HubServer({"hf_ada": ["ada", "org"], "hf_bob": ["bob"]}) as server:
        yield server


@pytest.fixture(scope="module")
def environment(hub):
    """Creates the environment of a process with this Hub and an empty cache."""

    def make(home: Path, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return inherited | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    return make


@pytest.fixture(scope="module")
def send(hub, environment, tmp_path_factory):
    """Runs `falcon3-audio push` in the worker, or another verb; returns its exit code, output and errors."""
    command, home = [sys.executable, "-W", "ignore", "-c", WORKER], tmp_path_factory.mktemp("home")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment(home)) as worker:

        def send(*arguments, verb="push", token="hf_ada", shard_size="5GB", endpoint=hub.endpoint):
            settings = {"token": token, "shard_size": shard_size, "endpoint": endpoint}
            call = {"verb": verb, "arguments": [str(argument) for argument in arguments], **settings}
            worker.stdin.write(json.dumps(call) + "\n")
            worker.stdin.flush()
            return json.loads(worker.stdout.readline())

        yield send
        worker.stdin.close()


@pytest.fixture(scope="module")
def run(finished_run):
    return Path(finished_run.args.output_dir)


@pytest.fixture(scope="module")
def base(run, send):
    """The run's base model, on the Hub."""
    assert send(run / "base", "org/base")[0] == 0
    return "org/base"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.npy"
    np.save(path, tone(1.0))
    return path


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs the command in this process, which is offline; returns its exit code, output and errors."""
    monkeypatch.setenv("HF_TOKEN", "hf_ada")

    def here(*arguments):
        code = push.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return here


def answer_of(run: Path, clip: Path) -> list[int]:
    """Eight tokens about a clip from a run's local model."""
    chat = question(np.load(clip))
    processor = AutoProcessor.from_pretrained(run)
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    tokens = load_adapted(run).eval().generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def copy_of(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place, ignore=shutil.ignore_patterns("checkpoint-*")))


def results(process: subprocess.CompletedProcess) -> list:
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line[7:]) for line in process.stdout.splitlines() if line.startswith("RESULT ")]


def test_a_push_is_one_commit_that_loads_anywhere(run, hub, send, environment, clip, tmp_path):
    code, said, error = send(run, "org/model", "--message", "First", "--verify")
    assert code == 0, error
    assert hub.repos["org/model"].titles == ["initial commit", "First"] and not hub.repos["org/model"].private
    assert "verified: loaded from the Hub without falcon3_audio, it says about a tone:" in said
    files = hub.files("org/model")
    wanted = {"README.md", "config.json", "generation_config.json", "model.safetensors", "recipe.yaml"}
    wanted |= {"processor_config.json", "tokenizer.json", "chat_template.jinja", "trainer_state.json"}
    assert wanted | CODE <= files.keys() and not any("adapter" in name for name in files)
    merged = merge(run, tmp_path / "merged")
    assert files["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    recorded = yaml.safe_load((run / "recipe.yaml").read_text())
    assert yaml.safe_load(files["recipe.yaml"]) == recorded | {
        "audio_model": Path(recorded["audio_model"]).name,
        "text_model": Path(recorded["text_model"]).name,
        "train_data": [source | {"path": Path(source["path"]).name} for source in recorded["train_data"]],
        "local": [Path(name).name for name in recorded["local"]],
    }
    assert ModelCard(files["README.md"].decode()).data.pipeline_tag == "audio-text-to-text"
    # No file contains local paths.
    assert not [name for name, content in files.items() if str(tmp_path.parent).encode() in content]
    # Auto classes, processor and pipeline, by the Hub id; anonymous.
    script = Path(__file__).parents[1] / "load_remote_code.py"
    command = [sys.executable, "-I", script, "org/model", clip, str(SAMPLING_RATE), tmp_path / "again"]
    loaded = subprocess.run(command, env=environment(tmp_path / "home"), capture_output=True, text=True)
    expected = answer_of(run, clip)
    assert [result["tokens"] for result in results(loaded)] == [expected, expected]
    # Pushing the same again makes no commit and sends no weights.
    uploads = list(hub.uploads)
    assert send(run, "org/model")[0] == 0
    assert len(hub.repos["org/model"].titles) == 2 and hub.uploads == uploads


def test_measured_scores_go_along_as_the_hub_reads_them(run, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "results_of", lambda repo_id, folder, *_: [repo_id, (folder / "config.json").exists()])
    monkeypatch.setattr(push, "render_card", lambda facts, entries: ModelCard(f"{facts['repo_id']} {entries[1]}"))
    monkeypatch.setattr(push, "eval_result_files", lambda entries: {".eval_results/mmau.yaml": str(entries)})
    push.stage(run, tmp_path, "org/scored")
    assert (tmp_path / ".eval_results" / "mmau.yaml").read_text() == "['org/scored', True]"
    assert (tmp_path / "README.md").read_text().endswith("org/scored True")


def test_scores_of_other_weights_go(run, hub, send, tmp_path):
    code, said, error = send(run, "org/scored")
    assert code == 0, error
    old = {".eval_results/mmau.yaml": File(b"- value: 64"), ".eval_results/mine.txt": File(b"x")}
    repo = hub.repos["org/scored"]
    repo.commit("main", repo.commits[repo.find("main")] | old, "measured")
    assert send(run / "checkpoint-2", "org/scored")[0] == 0
    files = hub.files("org/scored")
    assert ".eval_results/mine.txt" in files and ".eval_results/mmau.yaml" not in files


def scored(model: Path, place: Path, repo_id: str) -> Path:
    """A results file with one result, measured with the files in `model`."""
    digest = model_digest(model)
    run = {name: "x" for name in NEEDED_OF_RUN} | {"control": "none", "decoding": {}, "versions": {"torch": "2"}}
    run |= {"model_commit": digest, "model_commit_is": "sha256", "decoding": {"do_sample": False}}
    rule = {"n": 6, "accuracy": 0.5, "interval": [0.25, 0.75], "breakdowns": {}}
    entry = {"model": repo_id, "format": 1, "benchmark": "jsonl", "title": "Own questions", "coverage": 1, "run": run}
    entry |= {"data_sha256": {"a.jsonl": "ab"}, "counts": {"questions": 6, "empty": 0}, "rules": {"content": rule}}
    place.write_text(json.dumps([entry | {"predictions_sha256": "cd"}]))
    return place


def test_a_run_goes_with_the_score_of_its_merged_model(run, here, tmp_path):
    """A score of the run's own folder is refused, because other files are pushed; the error says what to measure."""
    options = ("org/model", "--dry-run", "--results")
    code, said, error = here(run, *options, scored(run, tmp_path / "run.json", "org/model"))
    assert code == 1 and "dry run" not in said
    message = error.strip().splitlines()[-1]
    assert f"than those created from {run}. " in message and "falcon3-audio-push-" not in message
    assert f"`falcon3-audio merge {run} OUT`, evaluate OUT, and `falcon3-audio results add` its score" in message
    merged = merge(run, tmp_path / "merged")
    for folder in (run, merged):
        assert here(folder, *options, scored(merged, tmp_path / "merged.json", "org/model"))[0] == 0


def test_what_is_merged_is_in_the_files_that_are_pushed(run, tmp_path, monkeypatch):
    """Also with several files: a score belongs to files, by their digest."""
    for module in (merging, push):
        monkeypatch.setattr(module, "SHARD_SIZE", "100KB")
    merged = merge(run, tmp_path / "merged")
    (tmp_path / "staged").mkdir()
    push.stage(run, tmp_path / "staged", "org/model")
    assert len(list(merged.glob("*.safetensors"))) > 2
    assert model_digest(merged) == model_digest(tmp_path / "staged")


@pytest.mark.parametrize(
    "text, told",
    [
        ("/home/me/x", "x"),
        ("/home/me/x/", "x"),
        ("/data", "data"),
        ("~/me/x", "x"),
        ("../../home/me/x", "x"),
        ("runs/../../home/me/x", "x"),
        ("file:///home/me/x", "x"),
        ("--data=/home/me/x --out ~/y", "--data=x --out y"),
        ("/home/me/a,/home/me/b", "a,b"),
        ("/home/me/a:/home/me/b", "a:b"),
        ("/home/me/My Files/x y.wav", "x y.wav"),
        ("see '/home/me/x' for more", "see 'x' for more"),
        # Texts that reveal nothing about this machine.
        *((text, text) for text in ("org/name", "data/open_asqa", "https://host/home/me", "hf://datasets/org/x")),
        *((text, text) for text in ("yes/no, 3/4 and a / b", "<answer>a</answer>", "say /think", "..", "")),
    ],
)
def test_folders_of_this_machine_are_taken_out_of_what_is_recorded(text, told):
    assert push.without_folders(text) == told
    assert push.without_folders({text: [text, 3, None]}) == {told: [told, 3, None]}


def test_relative_folders_are_private_too():
    recipe = {
        "model": "models/secret-base",
        "text_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "train_data": [{"path": "private_customer/q.jsonl"}, {"path": "https://me:pass@host/x.jsonl"}],
        "noise": "C:\\Users\\John Smith\\noise.wav",
        "prompt": ["Is it a:/b or c?", "in C:\\Users\\me\\x.wav.", "https://me:p@ss@host/x"],
        "local": ["models/secret-base", "private_customer/q.jsonl"],
    }
    assert push.without_folders(recipe, local_names(recipe)) == {
        "model": "secret-base",
        "text_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "train_data": [{"path": "q.jsonl"}, {"path": "https://host/x.jsonl"}],
        "noise": "noise.wav",
        "prompt": ["Is it a:/b or c?", "in x.wav.", "https://host/x"],
        "local": ["secret-base", "q.jsonl"],
    }


def test_a_dry_run_sends_nothing(run, here, hub):
    """In a process that is offline, and without a token."""
    asked = len(hub.requests)
    code, said, _ = here(run, "org/dry", "--dry-run")
    assert code == 0 and len(hub.requests) == asked and "org/dry" not in hub.repos
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in said.splitlines()[:-2]}
    assert listed.keys() > CODE and listed["trainer_state.json"] == (run / "trainer_state.json").stat().st_size
    assert said.splitlines()[-2:] == [
        f"{sum(listed.values()):>16,}  bytes in {len(listed)} files",
        "dry run: nothing was sent to org/dry",
    ]


def test_private_repositories(run, hub, send):
    assert send(run, "ada/private", "--private")[0] == 0
    assert hub.repos["ada/private"].private
    assert send(run, "ada/public")[0] == 0
    assert send(run, "ada/private")[0] == 0 and hub.repos["ada/private"].private  # it stays private
    code, _, error = send(run / "checkpoint-2", "ada/public", "--private")
    assert code == 1 and "ada/public already exists and is public: nothing was sent" in error
    assert len(hub.repos["ada/public"].titles) == 2
    code, _, error = send(run, "ada/private", token="hf_bob")
    assert code == 1 and error.startswith("falcon3-audio push: The token cannot write to ada/private: You don't have")


def test_branches_and_pull_requests(run, hub, send):
    assert send(run, "org/branches")[0] == 0
    before = hub.files("org/branches")
    assert send(run / "checkpoint-2", "org/branches", "--revision", "early")[0] == 0
    early = load(hub.files("org/branches", "early")["model.safetensors"])
    expected = weights_of(run / "checkpoint-2")["base_model.model.model.multi_modal_projector.linear_1.weight"]
    assert torch.equal(early["model.multi_modal_projector.linear_1.weight"], expected)
    assert json.loads(hub.files("org/branches", "early")["trainer_state.json"])["global_step"] == 2
    # From a user without write access.
    code, said, _ = send(run / "checkpoint-4", "org/branches", "--create-pr", token="hf_bob")
    assert code == 0 and f"pushed: {hub.endpoint}/org/branches/discussions/1" in said
    assert json.loads(hub.files("org/branches", "refs/pr/1")["trainer_state.json"])["global_step"] == 4
    assert hub.files("org/branches") == before
    code, _, error = send(run, "org/branches", token="hf_bob")
    assert (
        code == 1 and "falcon3-audio push: The token cannot write to org/branches" in error and "--create-pr" in error
    )


def test_shards_dtype_and_what_was_there_before(run, hub, send, base, tmp_path):
    """An adapter is replaced by a model in shards, and that by an adapter: never both."""
    adapter = (run, "org/both", "--adapter-only", "--base-model", base)
    assert send(*adapter)[0] == 0
    assert send(run, "org/both", "--dtype", "bfloat16", shard_size="100KB")[0] == 0
    files = hub.files("org/both")
    shards = {name for name in files if name.endswith(".safetensors")}
    assert shards == set(json.loads(files["model.safetensors.index.json"])["weight_map"].values()) and len(shards) > 2
    assert "adapter_config.json" not in files
    assert json.loads(files["config.json"])["dtype"] == "bfloat16"
    weights = {name: weight for shard in shards for name, weight in load(files[shard]).items()}
    merged = weights_of(merge(run, tmp_path / "merged"))
    assert weights.keys() == merged.keys()
    assert all(torch.equal(weights[name], merged[name].to(torch.bfloat16)) for name in weights)
    assert send(*adapter)[0] == 0
    files = hub.files("org/both")
    assert [name for name in files if name.endswith((".safetensors", ".index.json"))] == ["adapter_model.safetensors"]
    assert "config.json" not in files and len(hub.repos["org/both"].titles) == 4


def test_after_a_cut_connection_the_same_command_finishes(run, hub, send):
    def uploads_of(*faults):
        before, hub.faults = len(hub.uploads), list(faults)
        code, _, error = send(run / "checkpoint-6", "org/cut", "--dtype", "float16", shard_size="100KB")
        assert hub.faults == []
        return code, error, hub.uploads[before:]

    # A shard that the storage refuses: some or all of the others arrive, and there is no commit.
    code, error, first = uploads_of(("PUT", "/objects/", 403))
    assert code == 1 and len(error.strip().splitlines()) == 1
    assert "Error while uploading 'model-0" in error and "large files that arrived are not sent again" in error
    assert hub.repos["org/cut"].titles == ["initial commit"]
    # Now an upload is cut off and retried immediately; then the connection is cut before the commit is complete.
    code, error, second = uploads_of(("PUT", "/objects/", CUT), ("POST", "/commit/", CUT))
    assert code == 1 and f"{hub.endpoint} cannot be reached, or the connection was cut" in error
    assert hub.repos["org/cut"].titles == ["initial commit"] and second
    code, error, third = uploads_of()
    assert code == 0 and third == [] and len(hub.repos["org/cut"].titles) == 2
    shards = [name for name in hub.files("org/cut") if name.endswith(".safetensors")]
    assert len(set(first + second)) == len(first + second) == len(shards) > 2


def test_adapters_load_without_the_package(run, recipe, hub, send, base, environment, clip, tmp_path):
    """Those pushed by the command, and those pushed by training itself."""
    assert send(run, "org/adapter", "--adapter-only", "--base-model", base)[0] == 0
    files = hub.files("org/adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == base
    assert files["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.base_model == [base]
    data = yaml.safe_load(Path(recipe).read_text())["train_data"][:1]
    config = write_recipe(tmp_path / "recipe.yaml", model=base, train_data=data, **SETTINGS)
    options = ("--config", config, "--output_dir", tmp_path / "run", "--max_steps", "2")
    code, _, error = send(*options, "--push_to_hub", "--hub_model_id", "org/trained", verb="train")
    assert code == 0, error
    assert set(hub.files("org/trained")) == set(files)
    card = ModelCard(hub.files("org/trained")["README.md"].decode())
    assert card.data.pipeline_tag == "audio-text-to-text" and card.data.base_model == [base]
    # The base of such a run need not be given.
    assert send(tmp_path / "run", "org/again", "--adapter-only")[0] == 0
    names = ("org/adapter", "org/trained", "org/again")
    command = [sys.executable, "-I", "-c", ASK_ADAPTERS, clip, base, *names]
    loaded = subprocess.run(command, env=environment(tmp_path / "home"), capture_output=True, text=True)
    adapter = copy_of(tmp_path / "run", tmp_path / "copy")
    push.name_base(adapter, str(run / "base"))
    pushed, trained = answer_of(run, clip), answer_of(adapter, clip)
    assert pushed != trained
    assert results(loaded) == [[name, said] for name, said in zip(names, (pushed, trained, trained)) for _ in range(2)]


def test_a_run_that_composed_its_model_pushes_it_merged(recipe, hub, send, tmp_path):
    """The user name is put before the repository name; nothing that identifies the machine is pushed."""
    options = ("--config", recipe, "--output_dir", tmp_path / "run", "--max_steps", "1", "--report_to", "tensorboard")
    code, out, error = send(*options, "--push_to_hub", "--hub_model_id", "whole", verb="train")
    assert code == 0 and "pushed: " in out, error
    files = hub.files("ada/whole")
    assert (tmp_path / "run" / "runs").exists() and (tmp_path / "run" / "training_args.bin").exists()
    assert {"model.safetensors", "config.json", "README.md", "recipe.yaml"} <= set(files)
    assert not any(name.startswith("runs/") or name in ("training_args.bin", "adapter_config.json") for name in files)
    text = b"".join(content for name, content in files.items() if name.endswith((".json", ".yaml", ".md")))
    assert str(tmp_path).encode() not in text and b"/tmp/" not in text


def test_an_adapter_on_another_base_is_refused(run, hub, send, tmp_path):
    def said(base_model):
        code, out, error = send(run, "org/wrong", "--adapter-only", "--base-model", base_model)
        assert code == 1 and out == "" and len(error.strip().splitlines()) == 1
        return error

    assert "org/nothing is not a local folder and is not a valid model identifier" in said("org/nothing")
    other = copy_of(run, tmp_path / "other") / "base"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"pooling_window": 1, "pad_to_window": True}))
    assert send(other, "org/other-config")[0] == 0
    assert "but org/other-config differs from it in pooling_window, pad_to_window. Push" in said("org/other-config")
    assert "org/wrong" not in hub.repos


def test_another_answer_from_the_hub_is_an_error(run, here, monkeypatch):
    """For example if an adapter's base has other weights."""
    commit = CommitInfo("https://huggingface.co/org/model/commit/abc", "Upload model", "", "abc")
    asked, answers = [], ["a bell", "a dog"]
    monkeypatch.setattr(push, "check_token", lambda: None)
    monkeypatch.setattr(push, "upload", lambda folder, repo_id, *options: commit)
    monkeypatch.setattr(push, "ask", lambda *model: asked.append(model) or answers[len(asked) - 1])
    code, said, error = here(run, "org/model", "--verify")
    assert code == 1 and "pushed: https://huggingface.co/org/model/commit/abc" in said and "verified" not in said
    assert error.splitlines()[-1] == (
        "falcon3-audio push: The model on the Hub answers 'a dog' about a tone, but before the push it answered 'a bell'."
    )
    assert asked[1] == ("org/model", "abc", "hf_ada") and not Path(asked[0][0]).exists()  # temporary


def test_what_does_not_load_is_not_sent(run, here, monkeypatch, tmp_path):
    """The real `ask`, on a model without its code; the Hub is not contacted afterwards."""
    monkeypatch.setattr(push, "check_token", lambda: None)
    monkeypatch.setattr(push, "stage", lambda run, folder, *options: shutil.copy(run / "base" / "config.json", folder))
    code, said, error = here(run, "org/model", "--verify")
    assert code == 1 and "pushed" not in said
    assert "does not answer where falcon3_audio is not installed: " in error and "configuration_falcon3_audio" in error


def test_what_the_repository_leaves_out_is_said(run, hub, send):
    hub.repos["org/ignores"] = Repo()
    hub.repos["org/ignores"].commit(
        "main", {".gitignore": File(b"recipe.yaml\nchat_template.jinja\n")}, "initial commit"
    )
    code, said, error = send(run, "org/ignores")
    assert code == 1 and "pushed" not in said
    assert "lacks chat_template.jinja, recipe.yaml: the repository's .gitignore leaves them out" in error


def test_tokens_names_and_connections_that_are_refused(run, hub, send, here, monkeypatch):
    def said(name, **options):
        code, _, error = send(run, name, **options)
        assert code == 1 and len(error.strip().splitlines()) == 1
        return error

    assert "The Hub refused the token: " in said("org/new", token="hf_nobody")
    assert "The token cannot write to org/new: You don't have the rights" in said("org/new", token="hf_bob")
    assert "org/new" not in hub.repos
    assert "names no owner" in here(run, "model")[2]
    assert all("Repo id must" in here(run, name)[2] for name in ("a/b/c", "org/my model"))
    code, _, error = here(run, "org/new")
    assert code == 1 and "cannot be reached, or the connection was cut: " in error and "offline mode" in error
    error = said("org/new", endpoint="http://127.0.0.1:9")
    assert "push: http://127.0.0.1:9 cannot be reached, or the connection was cut: " in error and "refused" in error
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(push, "get_token", lambda: None)  # whatever this machine's login
    code, _, error = here(run, "org/new")
    assert code == 1 and "There is no token for the Hub. Log in with `hf auth login`, or set HF_TOKEN" in error


def test_what_is_no_whole_model_is_not_pushed(run, here, tmp_path):
    def said(folder, *options):
        code, out, error = here(folder, "org/model", "--dry-run", *options)
        assert code == 1 and out == "" and len(error.strip().splitlines()) == 1
        return error.removeprefix("falcon3-audio push: ")

    assert said(tmp_path / "none").startswith(f"{tmp_path}/none holds no model (adapter_config.json or config.json)")
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "adapter_config.json").unlink()
    assert said(unfinished).endswith(
        f"has not finished. Start it again to resume, or push {unfinished}/checkpoint-6.\n"
    )
    checkpoint = unfinished / "checkpoint-6"
    os.truncate(checkpoint / "adapter_model.safetensors", 5000)
    assert said(checkpoint).startswith(f"{checkpoint}/adapter_model.safetensors cannot be read: ")
    (checkpoint / "adapter_model.safetensors").unlink()
    assert "checkpoint-6 holds no weights" in said(checkpoint)
    os.truncate(checkpoint / "trainer_state.json", 100)
    assert said(checkpoint).startswith(f"{checkpoint} was interrupted while it was written: it has no readable")
    half = copy_of(run, tmp_path / "half")
    (half / "trainer_state.json").unlink()
    assert said(half).startswith(f"{half} was interrupted while it was written")


def test_what_an_adapter_or_a_card_lacks_is_one_line(run, here, tmp_path):
    def said(folder, *options):
        code, out, error = here(folder, "org/model", "--dry-run", *options)
        assert code == 1 and out == ""
        return error.strip().splitlines()[-1].removeprefix("falcon3-audio push: ")

    only = "--adapter-only"
    assert said(run, only).startswith(f"The adapter's base model is the folder {run}/base, which others cannot load")
    assert said(run / "base", only).startswith(f"{run}/base holds no adapter; push it without")
    assert f"must be a Hub id (ORG/NAME), but {run}/base is a folder" in said(run, only, "--base-model", run / "base")
    assert "Repo id must" in said(run, only, "--base-model", "org/my base")
    broken = copy_of(run, tmp_path / "broken")
    (broken / "recipe.yaml").write_text("- a list\n")
    assert "recipe.yaml must be a YAML mapping" in said(broken)
    for wrong in ((only, "--dtype", "float16"), ("--base-model", "org/base"), ("--verify",)):
        with pytest.raises(SystemExit) as stopped:
            said(run, *wrong)
        assert stopped.value.code == 2
