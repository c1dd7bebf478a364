"""Pushes a trained model to the Hugging Face Hub, so that it loads with only transformers installed.

    falcon3-audio push RUN ORG/NAME                   # RUN: a run, one of its checkpoint-N, or a plain checkpoint
    falcon3-audio push RUN ORG/NAME --adapter-only --base-model ORG/BASE
    falcon3-audio push RUN ORG/NAME --dry-run         # lists the files, sends nothing

Weights (with the adapter merged), processor, code, card, recipe and loss curve are prepared in a temporary folder (set
by TMPDIR) and uploaded in one commit, which also removes the weights of an earlier push. After a lost connection, run
the same command again to resume: large files that arrived are not sent again. --verify asks the uploaded model a
question.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import Any

import httpx2
import torch
import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig
from transformers import AutoConfig
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from falcon3_audio.adapters import find_base, root_of
from falcon3_audio.model_cards import render_card
from falcon3_audio.model_cards.results import RESULTS, eval_result_files, results_of
from falcon3_audio.user_errors import user_errors
from falcon3_audio.yaml_files import read_yaml

from ..arguments import OF_COMPOSED
from ..run_folder import RECIPE, STATE, explain, find_checkpoint, find_damage, is_complete, local_names
from .merge import SHARD_SIZE, forget_folders, load_merged, load_processor
from .run_facts import facts_of_run
from .verify_push import ask


ADAPTER = (ADAPTER_CONFIG_NAME, "adapter_model.safetensors")
RECORDS = (STATE, "loss_curve.png")  # of a run, if it has them, besides the recipe
# Files of an earlier push that would be loaded together with, or instead of, those of this one.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*config.json")
SCORES = ".eval_results/*.yaml"  # of the weights of an earlier push
# Local paths anywhere in a text: from the root, a home, or a parent folder. URLs do not match.
_NAME = r"""[^\s/,;:=<>|"'`()\[\]{}]+(?: (?![-~]|\.\.)[^\s/,;:=<>|"'`()\[\]{}]+)*"""
PLACE = re.compile(rf"(?<![\w/.~])(?:(?:file://[\w.-]*|~[\w.-]*|(?:[\w.-]+/)*\.\.)|/{_NAME})/{_NAME}(?:/{_NAME})*/?")
WINDOWS_PLACE = re.compile(r"(?<![\w/\\])(?:[A-Za-z]:|\\)(?:\\[^\\/:*?\"<>|\n]+)*\\([^\\/:*?\"<>|\s]+)")
USER = re.compile(r"(\w://)[^\s/]+@")
# Configuration fields in which a base model must match the one that an adapter was trained on.
OF_THE_BASE = ("audio_config", "text_config", "audio_token_id", *OF_COMPOSED)
AGAIN = "Run the same command again to resume; large files that arrived are not sent again."
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access."
DTYPES = ("auto", "bfloat16", "float16", "float32")


def stage(
    run: Path,
    folder: Path,
    repo_id: str,
    adapter_of: str | None = None,
    dtype: str = "auto",
    results_file: Path = RESULTS,
):
    """
    Writes everything that goes to `repo_id` into `folder`.

    Args:
        run: a run's folder, one of its checkpoints, or a plain checkpoint, which passed `check_whole`.
        folder: an empty folder.
        adapter_of: Hub id of the base model, if only the adapter is pushed. Its configuration still names the run's
            local base (see `name_base`).
        dtype: of merged weights ("auto": as they are).
        results_file: with the scores that were measured with exactly these files.

    Raises:
        `ValueError`: if the base model of an adapter or facts for the card are missing, or a score was measured with
            other files.
        `OSError`, `SafetensorError`: if something cannot be read or written.
    """
    if adapter_of:
        for name in ADAPTER:
            shutil.copyfile(run / name, folder / name)
        name_base(folder, find_base(run))
    else:
        model = load_merged(run)
        if dtype != "auto":
            model = model.to(getattr(torch, dtype))
        forget_folders(model)
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    load_processor(run).save_pretrained(folder)
    root = root_of(run)
    copy_records(run, root, folder)
    results = results_of(repo_id, folder, results_file, run)
    render_card(facts_of_run(root, folder, repo_id, adapter_of), results).save(folder / "README.md")
    for name, content in eval_result_files(results).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def copy_records(run: Path, root: Path, folder: Path):
    """Copies log, loss curve and recipe of a run, if it has them, without local folders."""
    for path in (run / name for name in RECORDS):
        if path.exists() and path.name == STATE:  # may name the best checkpoint's folder
            state = without_folders(json.loads(path.read_text(encoding="utf-8")))
            (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        elif path.exists():
            shutil.copyfile(path, folder / path.name)
    if (root / RECIPE).exists():
        recipe = read_yaml(root / RECIPE)
        recipe = without_folders(recipe, local_names(recipe))
        (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def without_folders(value: Any, local: Collection[str] = ()) -> Any:
    """
    A record's names and values with paths reduced to their last part, as local folders are private, and URLs without
    user names and passwords. `local`: relative paths in it.
    """
    if isinstance(value, dict):
        return {without_folders(key, local): without_folders(item, local) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item, local) for item in value]
    if not isinstance(value, str):
        return value
    windows = PureWindowsPath(value)
    if value in local or windows.is_absolute() and windows.drive:
        return windows.name or "."
    text = USER.sub(r"\1", WINDOWS_PLACE.sub(r"\1", value))
    text = PLACE.sub(lambda place: place.group().rstrip("/").rpartition("/")[2], text)
    return Path(text).name if Path(text).is_absolute() else text


def check_whole(run: Path):
    """Raises a `ValueError` if `run` holds no model, or an incomplete or damaged one."""
    if not any((run / name).exists() for name in (ADAPTER[0], CONFIG_NAME)):
        last = find_checkpoint(run)
        if last:
            raise ValueError(f"The training in {run} has not finished. Start it again to resume, or push {last}.")
        raise ValueError(
            f"{run} holds no model (adapter_config.json or config.json). Give the folder of a finished run, one of its "
            "checkpoints, or a folder from `falcon3-audio merge`."
        )
    trained = any((run / name).exists() for name in (ADAPTER[0], RECIPE)) or root_of(run) != run
    if trained and not is_complete(run):
        raise ValueError(
            f"{run} was interrupted while it was written: it has no readable {STATE}. Resume the training, or push a "
            "complete checkpoint."
        )
    weights = sorted(run.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{run} holds no weights (*.safetensors).")
    for path in weights:
        problem = find_damage(path)
        if problem:
            raise ValueError(f"{path} cannot be read: {problem}. Push another checkpoint, or train again.")


def name_base(folder: Path, base: str):
    """Makes the adapter in `folder` name `base` as its base model."""
    config = PeftConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = base
    config.save_pretrained(str(folder))


def choose_base(run: Path, given: str | None) -> str:
    """
    The Hub id that an adapter will name: `given`, or the model that the run was trained from.

    Raises a `ValueError` if there is no adapter, or no Hub id for its base.
    """
    if not (run / ADAPTER[0]).exists():
        raise ValueError(f"{run} holds no adapter; push it without --adapter-only.")
    trained_from = find_base(run)
    base = given or trained_from
    if given is None and Path(trained_from).exists():
        raise ValueError(
            f"The adapter's base model is the folder {trained_from}, which others cannot load. Push that first, and "
            "give its Hub id as --base-model; or push without --adapter-only."
        )
    if Path(base).exists():
        raise ValueError(f"--base-model must be a Hub id (ORG/NAME), but {base} is a folder here.")
    validate_repo_id(base)
    return base


def check_base(run: Path, base: str):
    """Raises a `ValueError` if `base` is not on the Hub, or has another architecture than the adapter's own base."""
    trained_from = find_base(run)
    if trained_from == base:
        return
    theirs, ours = (AutoConfig.from_pretrained(name).to_dict() for name in (base, trained_from))
    differing = [name for name in OF_THE_BASE if _shape(theirs.get(name)) != _shape(ours[name])]
    if differing:
        raise ValueError(
            f"The adapter was trained on {trained_from}, but {base} differs from it in {', '.join(differing)}. Push "
            "that model first and give its Hub id, or push without --adapter-only."
        )


def _shape(value: Any) -> Any:
    """A configuration without the fields that do not affect the architecture."""
    drop = ("dtype", "transformers_version", "_name_or_path")
    return {key: item for key, item in value.items() if key not in drop} if isinstance(value, dict) else value


def upload(
    folder: Path, repo_id: str, message: str, private: bool = False, revision: str | None = None, pr: bool = False
) -> CommitInfo:
    """
    Uploads all of `folder` to `repo_id`, which is created if needed, in one commit. Unchanged files are not sent.

    Raises a `ValueError` with one line that says what the Hub refused or how the connection failed.
    """
    api = HfApi()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with hub_errors(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} already exists and is public: nothing was sent. Make it private on its page.")
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        old = [name for name in there if name not in names and _is_replaced(name)]
        # Not `upload_folder`, which commits every few minutes: others could see half a model.
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in old]
        operations += [CommitOperationAdd(name, folder / name) for name in names]
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, create_pr=pr)
        missing = set(names) - set(api.list_repo_files(repo_id, revision=commit.oid))
    if missing:
        raise ValueError(
            f"{commit.commit_url} lacks {', '.join(sorted(missing))}: the repository's .gitignore leaves them out. "
            "Remove that file there, and push again."
        )
    return commit


def _is_replaced(name: str) -> bool:
    return fnmatch(name, SCORES) or "/" not in name and any(fnmatch(name, pattern) for pattern in REPLACED)


def check_token():
    """Raises a `ValueError` if there is no token, or the Hub rejects it."""
    if get_token() is None:
        raise ValueError(f"There is no token for the Hub. {LOG_IN}")
    with hub_errors("the Hub"):
        HfApi().whoami()


@contextmanager
def hub_errors(target: str) -> Iterator[None]:
    """Turns errors of the Hub's client into a `ValueError` of one line; `target` is what it tried to access."""
    try:
        yield
    except RuntimeError as error:  # from an upload; its cause says what went wrong
        raise ValueError(f"{error} {_said(error.__cause__ or error)}. {AGAIN}") from error
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(_explain_hub(error, target)) from error


def _explain_hub(error: Exception, target: str) -> str:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    if isinstance(error, RepositoryNotFoundError):
        return f"{target} is not on {constants.ENDPOINT}, or the token has no access to it: {_said(error)}."
    if status == 401:
        return f"The Hub refused the token: {_said(error)}. {LOG_IN}"
    if status == 403:
        return f"The token cannot write to {target}: {_said(error)}. Use another name, or --create-pr if it exists."
    if status is not None:
        return f"The Hub refused with status {status}: {_said(error)}."
    return f"{constants.ENDPOINT} cannot be reached, or the connection was cut: {_said(error)}. {AGAIN}"


def _said(error: BaseException) -> str:
    return (getattr(error, "server_message", None) or str(error) or type(error).__name__).rstrip(".")


def push_finished(run: Path, repo_id: str, private: bool = False, revision: str | None = None) -> CommitInfo:
    """
    Pushes the result of a finished training: the adapter if its base model is on the Hub, else the merged model.
    Leaves out TensorBoard's files and training_args.bin, which name the machine. Raises the errors of `stage` and
    `upload`.
    """
    base = find_base(run) if (run / ADAPTER[0]).exists() else None
    base = None if base and Path(base).exists() else base
    with tempfile.TemporaryDirectory(prefix="falcon3-audio-push-") as name:
        stage(run, Path(name), repo_id, base)
        if base:
            name_base(Path(name), base)
        return upload(Path(name), repo_id, "End of training", private, revision)


def whole_repo_id(name: str | None, output_dir: str) -> str:
    """ORG/NAME for a training: `name` (default: `output_dir`'s), prefixed with the user if it names no owner."""
    name = name or Path(output_dir).resolve().name
    with hub_errors("the Hub"):
        repo_id = name if "/" in name else f"{HfApi().whoami()['name']}/{name}"
    validate_repo_id(repo_id)
    return repo_id


def push(options: argparse.Namespace):
    """Runs the command; see `main` for its options, and the functions here for the errors."""
    validate_repo_id(options.repo_id)
    if "/" not in options.repo_id:
        raise ValueError(f"{options.repo_id!r} names no owner: give ORG/NAME or USER/NAME.")
    run = options.run.resolve()
    check_whole(run)
    base = choose_base(run, options.base_model) if options.adapter_only else None
    if not options.dry_run:
        check_token()  # before minutes of merging
        if base:
            check_base(run, base)
    with tempfile.TemporaryDirectory(prefix="falcon3-audio-push-") as name:
        folder = Path(name)
        stage(run, folder, options.repo_id, base, options.dtype, options.results)
        expected = ask(name) if options.verify else None  # a model that does not load is not sent
        if base:
            name_base(folder, base)
        print_files(folder)
        if options.dry_run:
            print(f"dry run: nothing was sent to {options.repo_id}")
            return
        commit = upload(folder, options.repo_id, options.message, options.private, options.revision, options.create_pr)
    print(f"pushed: {commit.pr_url or commit.commit_url}", flush=True)
    if options.verify:
        answer = ask(options.repo_id, commit.oid, get_token())
        if answer != expected:
            raise ValueError(
                f"The model on the Hub answers {answer!r} about a tone, but before the push it answered {expected!r}."
            )
        print(f"verified: loaded from the Hub without falcon3_audio, it says about a tone: {answer!r}")


def print_files(folder: Path):
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for name, size in sorted(sizes.items()):
        print(f"{size:>16,}  {name}")
    print(f"{sum(sizes.values()):>16,}  bytes in {len(sizes)} files", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio push", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", type=Path, help="a run, one of its checkpoints, or a plain checkpoint")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hub; created if missing")
    parser.add_argument("--adapter-only", action="store_true", help="only the adapter, not merged")
    parser.add_argument("--base-model", metavar="ORG/BASE", help="base model that the adapter will name")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: unchanged)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of `results add --file` (default: %(default)s)")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--revision", metavar="BRANCH", help="push to this branch; created if missing")
    place.add_argument("--create-pr", action="store_true", help="open a pull request instead of pushing to main")
    parser.add_argument("--message", default="Upload model", help="of the commit (default: %(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="list files and sizes, and send nothing")
    what.add_argument("--verify", action="store_true", help="load it again without falcon3_audio, and ask a question")
    options = parser.parse_args(arguments)
    if options.adapter_only and options.dtype != "auto":
        parser.error("--dtype is for merged weights; an adapter keeps its dtype")
    if options.base_model and not options.adapter_only:
        parser.error("--base-model needs --adapter-only")
    with user_errors(parser.prog, explain=explain) as end:
        push(options)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
