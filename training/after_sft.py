"""What GRPO and DPO, the trainings after the supervised one, share: logs, workers, and the printed plan."""

from pathlib import Path

from torch import nn

from falcon3_audio.peak_memory import peak_memory_gib

from .arguments import LoraArguments
from .learning import count_parameters, describe_parts
from .workers import outlive_sigterm


class AfterSFT:
    """
    For trainers: logs have the peak memory, workers outlive SIGTERM, and a finished run that is started again takes no
    further step.
    """

    def log(self, logs, start_time=None):
        if "loss" in logs:  # of training
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device.type)
        super().log(logs, start_time)

    def get_train_dataloader(self):
        return outlive_sigterm(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset=None):
        return outlive_sigterm(super().get_eval_dataloader(eval_dataset))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.state.global_step >= self.state.max_steps:  # transformers would take one step first
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)


def print_plan(model: nn.Module, lora: LoraArguments, lines: dict[str, str], checkpoint: Path | None):
    """Prints what is trained, `lines`, and the checkpoint that the run resumes from."""
    plan = dict(describe_parts(count_parameters(model), lora)) | lines
    plan |= {"resuming from": str(checkpoint)} if checkpoint else {}
    for name, text in plan.items():
        print(f"{name:<22} {text}", flush=True)
