"""A plug-in with which lmms-eval 0.7 (github.com/EvolvingLMMs-Lab/lmms-eval) runs our models, tasks and scores.

lmms-eval's own tasks for these benchmarks do not implement the published scoring; those in tasks/ call
falcon3_audio.evaluation.rules. The data are the files that `falcon3-audio evaluate` reads, given by environment
variables. lmms-eval finds the model by the entry point `lmms_eval.models`. It needs
`pip uninstall torchvision torchcodec` if those do not match torch, and its command returns 0 after an error unless
`--verbosity DEBUG` is given. `python -m falcon3_audio.evaluation.lmms_eval` prints the folder of the tasks:

    FALCON3_AUDIO_MMAU=MMAU/mmau-test-mini.json lmms-eval --model falcon3_audio --model_args pretrained=CHECKPOINT \
        --tasks mmau_falcon3_audio --include_path $(python -m falcon3_audio.evaluation.lmms_eval) --batch_size 8
"""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

TASKS = Path(__file__).parent / "tasks"


def manifest() -> "ModelManifest":
    """What the entry point returns: the model's name in lmms-eval, and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest  # only lmms-eval calls this

    return ModelManifest("falcon3_audio", chat_class_path=f"{__name__}.model.Falcon3Audio")
