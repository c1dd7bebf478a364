"""`falcon3-audio serve`: what it starts and refuses; the plug-in. test_vllm.py tests the servers themselves."""

import ast
import importlib.util
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoProcessor

import falcon3_audio.serving
from falcon3_audio.serving import serve, vllm_plugin
from falcon3_audio.serving.request_limits import Limits


@pytest.fixture
def started(monkeypatch):
    """Commands and environments that would have replaced this process, with vLLM installed."""
    calls: list[tuple[list[str], dict[str, str]]] = []
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: find_spec("json" if name == "vllm" else name))
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((command, environment)))
    return calls


def test_the_command_of_vllm(started, checkpoint):
    serve.main([checkpoint, "--engine", "vllm"])
    ((command, environment),) = started
    assert command[0] == sys.executable
    assert shlex.join(command[1:]) == (
        f"-m vllm.entrypoints.openai.api_server --model {checkpoint} --host 127.0.0.1 --port 8000 "
        f"--served-model-name {checkpoint} --max-model-len 8192 --limit-mm-per-prompt '{{\"audio\": 8}}' "
        "--allowed-media-domains fetching-is-off.invalid --allowed-origins '[]' "
        "--middleware falcon3_audio.serving.request_limits.RequestLimits"
    )
    assert environment["VLLM_MAX_AUDIO_DECODE_DURATION_S"] == "300"
    assert environment["VLLM_MAX_AUDIO_CLIP_FILESIZE_MB"] == "48"
    assert environment["VLLM_NO_USAGE_STATS"] == "1" and environment["PATH"] == os.environ["PATH"]
    assert "VLLM_API_KEY" not in environment and environment["FALCON3_AUDIO_HOST"] == "127.0.0.1"


def test_options_reach_the_server(started, checkpoint, tmp_path, monkeypatch):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.max_audio_seconds = 90.5
    processor.save_pretrained(copy)
    monkeypatch.setenv("THE_KEY", "a secret")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    limits = Limits(10.0, 30.0, 3, 7.0, ("https://a.example", "https://b.example"))
    ours = ["--port", "9", "--served-model-name", "ears", "--api-key-env", "THE_KEY", "--max-audios", "2"]
    ours += ["--max-body-mib", "10", "--max-bodies-mib", "30", "--max-requests", "3", "--timeout", "7"]
    ours += ["--allowed-origin", "https://a.example", "--allowed-origin", "https://b.example"]
    ours += ["--allowed-media-domain", "a.org", "--allowed-media-domain", "b.org"]
    serve.main([str(copy), "--engine", "vllm", *ours, "--", "--max-model-len", "100", "--port", "10"])
    ((command, environment),) = started
    assert command[command.index("--served-model-name") + 1] == "ears"
    assert command[command.index("--limit-mm-per-prompt") + 1] == '{"audio": 2}'
    assert shlex.join(command).count("--allowed-media-domains a.org b.org --allowed-origins") == 1
    assert command[-4:] == ["--max-model-len", "100", "--port", "10"]  # last, so they take effect
    assert environment["VLLM_API_KEY"] == "a secret" and "a secret" not in command
    assert environment["VLLM_MAX_AUDIO_DECODE_DURATION_S"] == "91"
    assert environment["VLLM_MAX_AUDIO_CLIP_FILESIZE_MB"] == "8"
    assert environment["VLLM_NO_USAGE_STATS"] == "0"  # a value that is already set stays
    assert limits.as_environment().items() <= environment.items()
    assert json.loads(command[command.index("--allowed-origins") + 1]) == list(limits.allowed_origins)
    serve.main([str(copy), "--engine", "vllm", "--", "--host", "0.0.0.0"])
    assert "FALCON3_AUDIO_HOST" not in started[1][1]  # others can reach it under any name


def test_an_open_door_is_announced(started, checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("THE_KEY", "a secret")
    for options, announced in (
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key-env", "THE_KEY"], False),
        ([], False),
    ):
        serve.main([checkpoint, "--engine", "vllm", *options])
        assert ("anyone who reaches 0.0.0.0 can use it" in capsys.readouterr().err) == announced
    assert len(started) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--api-key-env", "NO_SUCH_VARIABLE"], "names the variable NO_SUCH_VARIABLE, which is not set"),
        (["--timeout", "0"], "timeout must be positive and finite, got 0.0"),
        (["--max-body-mib", "-1"], "max_body_mib must be positive"),
        (["--max-body-mib", "2000"], "max_bodies_mib must be max_body_mib (2000) or more, got 1024"),
        (["--allowed-origin", "a.example"], "allowed_origins must be like https://example.org, or *, got 'a.example'"),
    ],
)
def test_what_cannot_be_served_is_one_line(started, checkpoint, capsys, options, reason):
    assert serve.main([checkpoint, "--engine", "vllm", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("falcon3-audio serve: ") and reason in error and error.count("\n") == 1
    assert started == []


def test_vllm_gets_no_adapter_of_a_run(started, tmp_path, capsys):
    """vLLM would look for a config.json, which such a folder does not have."""
    (tmp_path / "adapter_config.json").touch()
    assert serve.main([str(tmp_path), "--engine", "vllm"]) == 1
    assert (
        f"{tmp_path} is an adapter; merge it into a checkpoint first: falcon3-audio merge" in capsys.readouterr().err
    )
    assert started == []


def test_other_models_and_missing_ones(started, backbone_folders, tmp_path, capsys):
    assert serve.main([backbone_folders[1], "--engine", "vllm"]) == 1
    assert "is a model of type 'llama'; expected one of Falcon3-Audio" in capsys.readouterr().err
    assert serve.main([str(tmp_path), "--engine", "vllm"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert serve.main(["runs/no-such-run", "--engine", "vllm"]) == 1
    assert "serve: runs/no-such-run is not a local folder. " in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra(checkpoint, capsys, monkeypatch, name):
    for module in [
        module for module in sys.modules if f".{module}".startswith((f".{name}", ".falcon3_audio.serving."))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(falcon3_audio.serving, "chat_server", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(name), *sys.meta_path])
    assert serve.main([checkpoint]) == 1
    error = capsys.readouterr().err
    assert error == f'falcon3-audio serve: {name} is not installed here: pip install "falcon3-audio[serve]".\n'


class Missing:
    """An entry of `sys.meta_path` that makes a package look not installed."""

    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_vllm(checkpoint, capsys):
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    assert serve.main([checkpoint, "--engine", "vllm"]) == 1
    assert "vLLM is not installed here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--", "--dtype", "float32"], "--dtype has no effect: options after -- are for --engine vllm"),
        (["--engine", "vllm", "--", "--api-key", "k"], "--api-key is visible to others"),
        (["--engine", "vllm", "--", "--api-key=k"], "--api-key is visible to others"),
        (["--max-audios", "0"], "--max-audios must be 1 or more, got 0"),
        (["--port", "65536"], "--port must be between 0 and 65535, got 65536"),
        (["--engine", "tgi"], "invalid choice: 'tgi'"),
    ],
)
def test_options_that_mean_nothing(capsys, options, reason):
    with pytest.raises(SystemExit) as exit:
        serve.parse(["model", *options])
    assert exit.value.code == 2 and reason in capsys.readouterr().err


def test_the_plug_in_registers_once_and_names_what_is_there(monkeypatch):
    registered: list[tuple[str, str]] = []
    registry = SimpleNamespace(
        get_supported_archs=lambda: {name for name, _ in registered},
        register_model=lambda *names: registered.append(names),
    )
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    vllm_plugin.register()
    vllm_plugin.register()
    ((architecture, path),) = registered
    assert architecture == "Falcon3AudioForConditionalGeneration"
    module, _, name = path.partition(":")
    assert module == "falcon3_audio.serving.vllm_model"
    source = Path(serve.__file__).with_name("vllm_model.py").read_text()
    assert name in {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
