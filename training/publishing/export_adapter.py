"""Exports an adapter without its base model: a few megabytes that become the checkpoint with the backbones.

    falcon3-audio export-adapter RUN OUT
    falcon3-audio merge OUT MODEL --audio-model openai/whisper-base --text-model HuggingFaceTB/SmolLM2-135M-Instruct

OUT gets the adapter with the projector, the recipe, the log and the loss curve of the run, and `backbones.json`: the
backbones of the base model, with digests of their weights. So `merge` composes the same base again, and warns if the
backbones are not those that the adapter was trained on; others of the same shape would load without an error.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from falcon3_audio.adapters import find_base, root_of
from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import check_new_folder, whole_folder, write_json

from ..run_folder import explain, local_names
from .adapter_base import BACKBONES, describe_backbones, recipe_of
from .push import ADAPTER, check_whole, copy_records, name_base, without_folders


DTYPES = ("bfloat16", "float16", "float32")


def export_adapter(run: str | Path, output: str | Path, dtype: str = "bfloat16") -> Path:
    """
    Writes everything needed to rebuild the model of `run`, except the backbones, into `output`; returns that path.

    Args:
        run: the folder of a finished run that composed its model, or one of its checkpoints.
        dtype: of the adapter's weights.

    Raises:
        `FileExistsError`: if `output` is not empty.
        `ValueError`: if `run` has no adapter, did not compose its model, or is damaged.
        `OSError`, `SafetensorError`: if something cannot be read or written.
    """
    run, output = Path(run), Path(output)
    check_new_folder(output)
    check_whole(run)
    root = root_of(run)
    if not (run / ADAPTER[0]).exists():
        raise ValueError(f"{run} holds no adapter ({ADAPTER[0]}): no tower had LoRA. Share the model itself.")
    recipe = recipe_of(root)
    backbones = describe_backbones(Path(find_base(run)))
    weights = load_file(run / ADAPTER[1])
    with whole_folder(output) as folder:
        save_file({name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}, folder / ADAPTER[1])
        shutil.copyfile(run / ADAPTER[0], folder / ADAPTER[0])
        name_base(folder, "")
        copy_records(run, root, folder)
        write_json(
            folder / BACKBONES,
            {
                option: {"name": without_folders(recipe[option], local_names(recipe))} | found
                for option, found in backbones.items()
            },
        )
    return output


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio export-adapter", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or one of its checkpoints")
    parser.add_argument("output", metavar="OUT", help="folder to create")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog, explain=explain) as end:
        print(f"adapter saved in {export_adapter(options.run, options.output, options.dtype)}")
    return end.status


if __name__ == "__main__":
    sys.exit(main())
