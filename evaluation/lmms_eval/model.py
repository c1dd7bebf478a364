"""Any model of `pipeline("audio-text-to-text")` in lmms-eval, as `--model falcon3_audio --model_args pretrained=DIR`.

A clip that cannot be answered stops the run, since lmms-eval cannot record a failed row and would take an empty reply
for the model's own; `falcon3-audio evaluate` records it and continues.
"""

import os
from itertools import groupby

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from .chat_model import Chat, ChatModel, cut, max_new_tokens, to_chat


class Falcon3Audio(lmms):
    """
    Args:
        pretrained: folder or Hub id; `revision`, `trust_remote_code`, `dtype` and `device` as for `pipeline`.
        batch_size: chats that are answered together.
        max_batch_size: passed by lmms-eval, but there is no automatic size.

    Raises:
        `ValueError`: a batch size that is not a number, several processes, and as in `LocalModel`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"got --batch_size {batch_size}; falcon3_audio takes a number of 1 or more.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("falcon3_audio runs in one process; start lmms-eval without a launcher.")
        self.batch_size = int(batch_size)
        self._model = ChatModel(pretrained, revision, trust_remote_code, dtype, device, self.batch_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """
        The replies in the order of the requests.

        Raises:
            `ValueError`: decoding that is not greedy, content other than audio and text, audio that cannot be read.
            `NoAudio`: the model was not given the audio.
        """
        replies: list[str] = []
        progress = tqdm(total=len(requests), desc="Answers")
        for limit, group in groupby(requests, key=lambda request: max_new_tokens(request.args[2])):
            same = list(group)
            for start in range(0, len(same), self.batch_size):
                batch = same[start : start + self.batch_size]
                texts = self._model.reply([self._chat(request) for request in batch], limit)
                replies += [cut(text, request.args[2].get("until")) for text, request in zip(texts, batch)]
                progress.update(len(batch))
        progress.close()
        return replies

    def _chat(self, request: Instance) -> Chat:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return to_chat(doc_to_messages(self.task_dict[task][split][doc_id]))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError(
            "falcon3_audio answers single requests; it does not support tasks of several rounds."
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("falcon3_audio generates text; choose a task of output_type generate_until.")
