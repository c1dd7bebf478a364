# PYTHON_ARGCOMPLETE_OK
"""`falcon3-audio VERB ...`: calls the verb's own module, which also runs with `python -m`.

This file is outside the package, whose `__init__` loads torch and transformers to register the model; `--help` and
completion must respond immediately. A verb's module is imported when the verb is called.
"""

import importlib
import os
import re
import signal
import sys


# verb -> (module, what it does)
VERBS = {
    "compose": ("falcon3_audio.compose", "build a checkpoint from a Whisper and a causal language model"),
    "open-asqa": (
        "falcon3_audio.training.prepare.open_asqa",
        "build training shards from Open-ASQA's JSON and your audio",
    ),
    "voice-instructions": (
        "falcon3_audio.training.prepare.voice_instructions",
        "synthesise speech for a text instruction set",
    ),
    "real-sounds": ("falcon3_audio.training.prepare.real_sounds.build", "build questions about real recordings"),
    "real-backbones": ("falcon3_audio.training.prepare.real_backbones", "build real backbones without the Hub"),
    "check-data": ("falcon3_audio.training.data.check_data", "decode a training set, and list unreadable clips"),
    "train": ("falcon3_audio.training.sft", "train a recipe: single-stage LoRA with TRL's SFTTrainer"),
    "study": ("falcon3_audio.training.study", "train and compare arms of a recipe, with several seeds each"),
    "grpo": ("falcon3_audio.training.grpo", "reinforce correct answers after training: GRPO with TRL"),
    "dpo": ("falcon3_audio.training.dpo", "learn preferences after training: DPO with TRL"),
    "merge": ("falcon3_audio.training.publishing.merge", "merge a trained adapter into a plain checkpoint"),
    "export-adapter": (
        "falcon3_audio.training.publishing.export_adapter",
        "export an adapter without its base model",
    ),
    "evaluate": ("falcon3_audio.evaluation.evaluate", "run a benchmark's questions, and score the replies"),
    "score": ("falcon3_audio.evaluation.score", "score a file of predictions"),
    "judge": ("falcon3_audio.evaluation.judge", "have open answers judged by other models"),
    "compare": ("falcon3_audio.evaluation.compare", "compare two files of predictions"),
    "push": ("falcon3_audio.training.publishing.push", "publish a run or a checkpoint on the Hub"),
    "card": ("falcon3_audio.training.publishing.card", "render a model card"),
    "results": ("falcon3_audio.model_cards.record", "add a score to the results that model cards show"),
    "serve": ("falcon3_audio.serving.serve", "serve a checkpoint behind an OpenAI-compatible API"),
    "export-gguf": ("falcon3_audio.serving.export_gguf", "write GGUF files for llama.cpp"),
    "demo-app": ("falcon3_audio.demo.app", "chat about audio in the browser"),
    "env": ("falcon3_audio.env", "print the versions to include in a bug report"),
}


def main(arguments: list[str] | None = None) -> int:
    if "_ARGCOMPLETE" in os.environ:
        complete()
    if arguments is not None:
        return run(arguments)
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has exited, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as in shells
    if status == 130:
        # A second Ctrl-C would print a traceback of Python's shutdown, which takes a moment with torch loaded.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def run(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        usage = (
            "usage: falcon3-audio VERB [options]    (falcon3-audio VERB --help for the options of one; --version)\n"
        )
        print("\n".join([usage, *(f"  {name:<18} {purpose}" for name, (_, purpose) in VERBS.items())]))
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"falcon3-audio {version('falcon3-audio')}")
        return 0
    if verb not in VERBS:
        print(f"falcon3-audio: unknown verb {verb!r}; choose one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    _quieten()
    try:
        return _run_verb(verb, arguments[1:])
    except KeyboardInterrupt:  # before the verb has started
        print(f"falcon3-audio {verb}: stopped.", file=sys.stderr)
        return 130


def _run_verb(verb: str, arguments: list[str]) -> int:
    try:
        module = importlib.import_module(VERBS[verb][0])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("falcon3_audio"):
            raise  # a bug
        print(f"falcon3-audio {verb}: {error}.{_extra_with(error.name or '', VERBS[verb][0])}", file=sys.stderr)
        return 1
    return module.main(arguments)


def complete():
    """
    Completes verbs, and files after them, for the shell and exits; argcomplete starts this program for that. Options
    of verbs are not completed, since the modules that define them take seconds to import.
    """
    import argparse

    import argcomplete  # from an extra, installed if completion is set up

    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    argcomplete.autocomplete(parser)


def _extra_with(module: str, wanted_by: str) -> str:
    """The end of a message: which extra has a missing module, preferably that of the importing folder; or empty."""
    from importlib.metadata import requires

    package = module.partition(".")[0].replace("_", "-")
    extras = re.findall(
        rf"^{re.escape(package)}\b[^;\n]*; extra == .(\w+).$", "\n".join(requires("falcon3-audio") or ()), re.M
    )
    extras.sort(key=lambda extra: not wanted_by.partition(".")[2].startswith(extra))
    return f" Install it with pip install 'falcon3-audio[{extras[0]}]'." if extras else ""


def _quieten():
    """Hides messages that other libraries print at every start and that users of a verb cannot act on."""
    import logging
    import warnings

    # It says that a kernel for 4-bit weights on CPUs is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT and TRL use transformers' old name.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
