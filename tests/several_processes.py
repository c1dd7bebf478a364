"""One of several processes of a launcher: runs `falcon3_audio.training.sft` for each list of arguments in a file.

    accelerate launch ... tests/several_processes.py FOLDER    # reads FOLDER/runs.json, writes FOLDER/report-RANK.json

`RANK` in an argument becomes the process's number. With `SIGTERM` among them, the last process gets that signal in its
first step. The report has the exit codes, the classes of all modules that ran, and the origins of the rows read from
streams.
"""

import json
import os
import signal
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.nn.modules.module import register_module_forward_pre_hook

from falcon3_audio.training import sft
from falcon3_audio.training.callbacks import SaveAtSigterm
from falcon3_audio.training.data import stream


def allow_fsdp_on_cpu() -> list[str]:
    """
    Options for a run with FSDP. Accelerate supports FSDP only on accelerators and silently falls back to DDP on CPUs,
    though FSDP itself runs on them. So its state says that these are GPUs, and the trainer is told not to change it.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # as transformers does before each run
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    return ["--accelerator_config", json.dumps({"use_configured_state": True})]


class Signalled(SaveAtSigterm):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def run(arguments: list[str]) -> int:
    sft.SaveAtSigterm = Signalled if "SIGTERM" in arguments else SaveAtSigterm
    extra = allow_fsdp_on_cpu() if os.environ.get("ACCELERATE_USE_FSDP") == "true" else []
    return sft.main([argument.replace("RANK", rank) for argument in arguments if argument != "SIGTERM"] + extra)


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    classes: set[str] = set()
    register_module_forward_pre_hook(lambda module, inputs: classes.add(type(module).__name__))
    streamed: list[str] = []
    read_example = stream.read_example

    def note(*arguments):
        example = read_example(*arguments)
        streamed.append(example["origin"])
        return example

    stream.read_example = note
    codes = [run(arguments) for arguments in json.loads((folder / "runs.json").read_text())]
    report = {"codes": codes, "classes": sorted(classes), "streamed": streamed}
    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    # Several runs in one process leave threads of destroyed groups, on which Python's shutdown sometimes aborts.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
