"""From the adapter that a run leaves to a plain checkpoint that needs no PEFT: LoRA added into the weights.

    falcon3-audio merge RUN OUT          # RUN: a run's folder, or one of its checkpoint-N

The base model is `base` in the run's folder if the run composed it, else the one that the adapter names. The result has its
dtype, its processor, and the code to be loaded with `trust_remote_code=True`; the folder appears whole or not at all.
A run in 4 bits is merged into the unquantised base, so its logits differ by the quantisation error.
"""

import argparse
import shutil
import sys
from pathlib import Path

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForMultimodalLM, AutoProcessor

from falcon3_audio import Falcon3AudioForConditionalGeneration

from .run_folder import BASE, explain, find_checkpoint


def merge(run: str | Path, output: str | Path) -> Path:
    """
    Merges the adapter in `run` into its base model, saves the result in `output` and returns that path.

    Raises:
        `FileExistsError`: if `output` holds anything already.
        `ValueError`: if `run` holds no adapter, or its base model is not to be found, or one of them is damaged.
        `OSError`, `SafetensorError`: if the result cannot be written.
    """
    run, output = Path(run), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder; choose another name or remove it.")
    model = load_adapted(run).merge_and_unload()
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoProcessor.from_pretrained(run).save_pretrained(unfinished)
    if output.exists():
        output.rmdir()
    unfinished.rename(output)
    return output


def load_adapted(run: Path) -> PeftModel:
    """The base model with the adapter of `run` on it, not merged. Errors as in `merge`."""
    if not (run / "adapter_config.json").exists():
        last = find_checkpoint(run)
        if last is not None:
            raise ValueError(f"{run} is a run that has not ended. Start it again to go on, or merge {last}.")
        plain = ": it is a plain checkpoint already" if (run / "config.json").exists() else ""
        raise ValueError(f"{run} holds no adapter (adapter_config.json){plain}. Give the folder of a run with LoRA.")
    base = find_base(run)
    try:
        model: Falcon3AudioForConditionalGeneration = AutoModelForMultimodalLM.from_pretrained(base, dtype="auto")
        return PeftModel.from_pretrained(model, run)
    except SafetensorError as error:
        raise ValueError(f"The weights in {run} or in its base model {base} cannot be read: {error}.") from error


def find_base(run: Path) -> str:
    """
    Where the base model of an adapter is: if the run composed it, `base` in the run's folder, wherever that is now;
    otherwise as named in the adapter.
    """
    named = PeftConfig.from_pretrained(str(run)).base_model_name_or_path
    places = [Path(named)]
    if Path(named).name == BASE:  # looked for here first: where it was, there may be another run by now
        places.insert(0, (run.parent if run.name.startswith("checkpoint-") else run) / BASE)
    found = next((place for place in places if (place / "config.json").exists()), None)
    if found is None and Path(named).is_absolute():
        raise ValueError(f"The base model of {run} is gone: looked in {', '.join(map(str, places))}.")
    return str(found or named)  # otherwise a Hub id


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio merge", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="folder of a training run, or one of its checkpoints")
    parser.add_argument("output", metavar="OUT", help="folder to create")
    options = parser.parse_args(arguments)
    try:
        print(f"merged model saved in {merge(options.run, options.output)}")
    except (ValueError, OSError, SafetensorError) as error:
        print(f"falcon3-audio merge: {explain(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
