"""`falcon3-audio serve`: a checkpoint behind an OpenAI-compatible API, with vLLM or with only transformers.

    falcon3-audio serve runs/mine/model
    falcon3-audio serve runs/mine/model --engine vllm -- --tensor-parallel-size 2

vLLM runs as `python -m vllm.entrypoints.openai.api_server`, with the lengths that the checkpoint allows; options after
`--` are passed on as they are, and take precedence. Both engines have the limits of request_limits.py. The server
listens only on this machine unless `--host` says otherwise; the key, if any, is read from an environment variable,
since other users can see command lines.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import fields
from importlib.util import find_spec

from transformers import AutoProcessor

from falcon3_audio import Falcon3AudioProcessor
from falcon3_audio.adapters import whole_model_config
from falcon3_audio.saved_json import readable_json
from falcon3_audio.text_sizes import context_length
from falcon3_audio.user_errors import user_errors

from .request_limits import LOOPBACK, PREFIX, Limits


# Files are 3/4 of their base64 in a body.
FILE_SHARE = 3 / 4
# vLLM fetches from everywhere unless it has a list; no host has a name with this ending, and errors show it.
NOWHERE = "fetching-is-off.invalid"


def vllm_command(options: argparse.Namespace) -> list[str]:
    """
    The command that starts vLLM.

    Raises the errors of `whole_model_config`.
    """
    config = whole_model_config(options.model)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", options.model]
    command += ["--host", options.host, "--port", str(options.port)]
    command += ["--served-model-name", options.served_model_name or options.model]
    context = context_length(config.text_config)
    command += ["--max-model-len", str(context)] if context else []
    command += ["--limit-mm-per-prompt", json.dumps({"audio": options.max_audios})]
    command += ["--allowed-media-domains", *(options.allowed_media_domains or [NOWHERE])]
    command += ["--allowed-origins", json.dumps(options.allowed_origins)]
    command += ["--middleware", "falcon3_audio.serving.request_limits.RequestLimits"]
    return command + options.engine_options


def vllm_environment(options: argparse.Namespace, key: str | None = None) -> dict[str, str]:
    """The environment for vLLM and the request limits. vLLM's own variables stay if they are already set."""
    with readable_json(options.model):
        processor: Falcon3AudioProcessor = AutoProcessor.from_pretrained(options.model)
    defaults = {
        # The plug-in refuses chats with longer clips; transcriptions are cut into windows.
        "VLLM_MAX_AUDIO_DECODE_DURATION_S": str(math.ceil(processor.max_audio_seconds)),
        "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB": str(math.ceil(options.max_body_mib * FILE_SHARE)),
        # No usage statistics are sent unless asked for.
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment = defaults | dict(os.environ) | _limits(options).as_environment()
    # Options after -- take precedence, and can open the server to others.
    if not any(option.partition("=")[0] == "--host" for option in options.engine_options):
        environment[PREFIX + "HOST"] = options.host
    if key:
        environment["VLLM_API_KEY"] = key
    return environment


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})


def _key(options: argparse.Namespace) -> str | None:
    key = os.environ.get(options.api_key_env) if options.api_key_env else None
    if options.api_key_env and not key:
        raise ValueError(f"--api-key-env names the variable {options.api_key_env}, which is not set.")
    return key


def serve(options: argparse.Namespace) -> int:
    """Does not return while the server runs. Errors: see `main`."""
    if options.host not in LOOPBACK and not options.api_key_env:
        print(f"falcon3-audio serve: anyone who reaches {options.host} can use it; see --api-key-env", file=sys.stderr)
    key = _key(options)
    if options.engine == "transformers":
        try:
            from . import chat_server
        except ModuleNotFoundError as error:
            if error.name not in ("anyio", "prometheus_client", "starlette", "uvicorn"):
                raise
            raise ValueError(f'{error.name} is not installed here: pip install "falcon3-audio[serve]".') from error
        return chat_server.run(options, _limits(options), key)
    if find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed here. Install it, then this package alongside it with `pip install --no-deps "
            "falcon3-audio`, since vLLM pins an older transformers; or use --engine transformers."
        )
    command = vllm_command(options)
    environment = vllm_environment(options, key)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """`engine_options` are those after `--`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    defaults = Limits()
    parser = argparse.ArgumentParser(
        prog="falcon3-audio serve",
        description=__doc__.split("\n\n")[0],
        usage="%(prog)s MODEL [options] [-- options of vLLM]",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a checkpoint (transformers: or of a run)")
    parser.add_argument(
        "--engine", choices=("vllm", "transformers"), default="transformers", help="(default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--served-model-name", metavar="NAME", help="model name that clients use (default: MODEL)")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable with the key for clients")
    parser.add_argument("--max-audios", type=int, default=8, help="clips in one chat (default: %(default)s)")
    parser.add_argument(
        "--allowed-media-domain",
        dest="allowed_media_domains",
        action="append",
        metavar="HOST",
        help="host from which audio can be fetched; repeat for more (default: none, requests contain their audio)",
    )
    parser.add_argument(
        "--max-body-mib", type=float, default=defaults.max_body_mib, help="per request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-bodies-mib",
        type=float,
        default=defaults.max_bodies_mib,
        help="for all requests together (default: %(default)s)",
    )
    parser.add_argument(
        "--allowed-origin",
        dest="allowed_origins",
        action="append",
        metavar="ORIGIN",
        help="origin whose web pages can send requests, such as https://example.org; repeat for more (default: none)",
    )
    parser.add_argument(
        "--max-requests", type=int, default=defaults.max_requests, help="at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=defaults.timeout, help="seconds per request (default: %(default)s)"
    )
    options = parser.parse_args(ours)
    options.allowed_media_domains = tuple(options.allowed_media_domains or ())
    options.allowed_origins = tuple(options.allowed_origins or ())
    options.engine_options = arguments[len(ours) + 1 :]
    if options.engine_options and options.engine != "vllm":
        parser.error(f"{options.engine_options[0]} has no effect: options after -- are for --engine vllm")
    if any(option.partition("=")[0] == "--api-key" for option in options.engine_options):
        parser.error(
            "--api-key is visible to others on this machine, and the request limits do not see it: use --api-key-env"
        )
    if not 0 <= options.port < 2**16:
        parser.error(f"--port must be between 0 and {2**16 - 1}, got {options.port}")
    if options.max_audios < 1:
        parser.error(f"--max-audios must be 1 or more, got {options.max_audios}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with user_errors("falcon3-audio serve", goes_on="") as end:
        return serve(options)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
