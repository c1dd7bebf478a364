"""`falcon3-audio evaluate`: runs a model on a benchmark, writes its predictions and scores them.

    falcon3-audio evaluate --benchmark mmau --data mmau-test-mini.json --model runs/mine/model --output-dir out
    falcon3-audio evaluate --benchmark mmau --data mmau-test-mini.json --output-dir out \\
        --endpoint http://127.0.0.1:8000/v1 --endpoint-model my-model

    accelerate launch --num_processes 4 -m falcon3_audio.evaluation.evaluate --benchmark mmau ...  # one share per GPU

The model is any transformers audio-language model, decoded greedily, or an endpoint that takes `input_audio`. Run the
same command again to resume, see generate.py. `--control` asks without the right audio, see controls.py.
"""

import argparse
import os
import sys
from pathlib import Path

from falcon3_audio.user_errors import user_errors

from . import score
from .answerers import Answerer, RunStopped
from .benchmarks import BENCHMARKS
from .controls import CONTROLS
from .endpoint import Endpoint, EndpointUnavailable
from .generate import generate
from .local_model import LocalModel, own_device
from .predictions import FAILED, read_predictions
from .prompts import PLACEHOLDERS, PROMPTS, read_prompt
from .remote_model import RemoteModel
from .wordings import read_paraphrases


DTYPES = ("float32", "bfloat16", "float16")
LOCAL_ONLY = ("revision", "trust_remote_code", "dtype", "device")
REMOTE_ONLY = ("endpoint_model", "api_key_env")


def evaluate(options: argparse.Namespace) -> int:
    """
    Generates and scores. Returns the exit code of the scoring or, if nothing is scored here, 1 if questions failed or
    were left out, unless that is allowed. Errors: see `main`.
    """
    benchmark = BENCHMARKS[options.benchmark]
    prompt = read_prompt(options.prompt_file) if options.prompt_file else options.prompt or benchmark.prompt
    questions = benchmark.load(options.data, options.audio_root, options.on_error)
    for reason, ids in questions.left_out.items():
        print(f"left out, {reason}: {len(ids)} (listed in run.json)", file=sys.stderr)
    process, processes = _place()
    statuses = generate(
        questions,
        _answerer(options),
        options.output_dir,
        prompt,
        options.control,
        options.seed,
        options.shuffle_choices or 0,
        read_paraphrases(options.paraphrases) if options.paraphrases else None,
        process,
        processes,
    )
    if statuses is None:
        print(f"process {process} of {processes} is finished; the last one writes {options.output_dir}", flush=True)
        return 0
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    print(f"{sum(statuses.values())} questions ({counts}); predictions in {options.output_dir}", flush=True)
    if statuses[FAILED] == sum(statuses.values()):
        first = read_predictions(options.output_dir).rows[0]
        raise ValueError(f"Every question failed, the first because: {first.error}")
    is_incomplete = bool(statuses[FAILED] or questions.left_out) and not options.allow_incomplete
    if not benchmark.rules:
        print(f"Open answers are scored by a judge: falcon3-audio judge {options.output_dir}")
        return int(is_incomplete)
    if all(question.answer is None and question.check is None for question in questions.questions):
        print("The benchmark does not publish its answers: there is nothing to score.")
        return int(is_incomplete)
    judged = [question.id for question in questions.questions if question.is_open]
    arguments = [str(options.output_dir), *(["--allow-incomplete"] if options.allow_incomplete else [])]
    if not judged or len(judged) == len(questions.questions):
        return score.main(arguments)
    print(
        f"{len(judged)} questions are open and not in this score: falcon3-audio judge {options.output_dir} rates them."
    )
    return score.main([*arguments, "--without-open"])


def _place() -> tuple[int, int]:
    """The number of this process and how many there are, from the variables that accelerate and torchrun set."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _answerer(options: argparse.Namespace) -> Answerer:
    if options.endpoint:
        endpoint = Endpoint(options.endpoint, options.endpoint_model, options.api_key_env or "OPENAI_API_KEY")
        return RemoteModel(endpoint, options.batch_size, options.max_new_tokens, options.seed)
    return LocalModel(
        options.model,
        options.revision,
        bool(options.trust_remote_code),
        options.dtype or "auto",
        options.device or own_device(),
        options.batch_size,
        options.max_new_tokens,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options that would be ignored are errors: argparse exits with status 2."""
    parser = argparse.ArgumentParser(prog="falcon3-audio evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    parser.add_argument("--data", required=True, type=Path, help="the benchmark's file, as published")
    parser.add_argument("--audio-root", type=Path, help="folder of the clips (default: where the file is)")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do with faulty rows of the file"
    )
    parser.add_argument("--output-dir", required=True, type=Path, help="folder for the predictions")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="exit with 0 even if questions failed or were left out"
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="folder or Hub id of a transformers model that takes audio")
    model.add_argument("--endpoint", metavar="URL", help="of a server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--revision", help="revision of the model on the Hub")
    parser.add_argument("--trust-remote-code", action="store_true", default=None, help="run the model's own code")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the weights (default: as saved)")
    parser.add_argument("--device", help="such as cuda:0 or cpu (default: the available accelerator)")
    parser.add_argument("--endpoint-model", metavar="NAME", help="the model's name on the server")
    parser.add_argument("--api-key-env", metavar="VAR", help="variable with the key (default: OPENAI_API_KEY)")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--prompt", choices=PROMPTS, help="default: the benchmark's, see benchmarks.py")
    placeholders = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    words.add_argument("--prompt-file", type=Path, metavar="FILE", help=f"your own prompt, with {placeholders}")
    parser.add_argument("--control", choices=CONTROLS, default="none", help="ask without the right audio")
    parser.add_argument(
        "--batch-size", type=_positive, default=8, help="questions per batch, or concurrent requests (default: 8)"
    )
    parser.add_argument("--max-new-tokens", type=_positive, default=256, help="per reply (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="for shuffling and for endpoints (default: 0)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--paraphrases", type=Path, metavar="FILE", help="also ask in other words, see wordings.py")
    ways.add_argument(
        "--shuffle-choices", type=_positive, metavar="K", help="also ask with the options in K shuffled orders"
    )
    options = parser.parse_args(arguments)
    useless = [
        name for name in (LOCAL_ONLY if options.endpoint else REMOTE_ONLY) if getattr(options, name) is not None
    ]
    if useless:
        kind = "--endpoint" if options.endpoint else "--model"
        parser.error(f"--{useless[0].replace('_', '-')} does nothing with {kind}")
    if options.endpoint and not options.endpoint_model:
        parser.error("--endpoint needs --endpoint-model")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected 1 or more")
    return number


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    goes_on = f"Run the same command again to resume: finished answers are in {options.output_dir}."
    with user_errors("falcon3-audio evaluate", RunStopped, breaks=(EndpointUnavailable,), goes_on=goes_on) as end:
        return evaluate(options)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
