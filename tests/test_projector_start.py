"""The new projector's start, fitted to clips and to the language model's embeddings."""

import pytest
import torch
from tiny import tone
from training_runs import assistant, user

from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.projector_start import fit_projector


def example(seconds):
    sound = {"type": "audio", "audio": tone(seconds, frequency=200 + 900 * seconds), "sampling_rate": 16_000}
    return {"messages": [user(sound), assistant("a dog")]}


@pytest.fixture
def clips(processor):
    return [AudioChatCollator(processor)([example(0.3 + number / 10)]) for number in range(12)]


@pytest.mark.parametrize("projector_type", ["mlp", "linear"])
def test_tokens_have_the_moments_of_the_embeddings(compose_tiny, clips, projector_type):
    model = compose_tiny(projector_type=projector_type)
    fit_projector(model, iter(clips))
    with torch.no_grad():
        tokens = torch.cat(
            [
                model.get_audio_features(clip["input_features"], clip["input_features_mask"]).pooler_output
                for clip in clips
            ]
        )
    embeddings = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(tokens.mean(0), embeddings.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.var(0), embeddings.var(0), atol=1e-4, rtol=1e-2)
