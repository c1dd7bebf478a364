"""Makes tests/golden: a fixed tiny model with its config, inputs and logits. Run only when the numbers are meant to change.

cd tests && python golden/make_golden.py
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from tiny import make_llm, make_tokenizer, make_whisper, question, tone  # noqa: E402
from transformers import WhisperFeatureExtractor  # noqa: E402

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor  # noqa: E402


def main():
    whisper = make_whisper(d_model=16, encoder_ffn_dim=16, max_source_positions=50)
    llm = make_llm(hidden_size=24, intermediate_size=24, head_dim=6)
    model = Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=1).eval()
    extractor = WhisperFeatureExtractor(chunk_length=1)
    processor = Falcon3AudioProcessor.from_backbones(extractor, make_tokenizer(), vocab_size=300)
    # Two prompts of different length; the first clip is a window of one second and the begin of another.
    inputs = processor.apply_chat_template(
        [question(tone(1.3)), question(tone(0.2, 700), tone(0.4, 900))],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors |= {f"inputs.{name}": tensor for name, tensor in inputs.items()} | {"logits": logits}
    save_file(tensors, FOLDER / "tiny.safetensors")
    model.config.to_json_file(FOLDER / "config.json")


if __name__ == "__main__":
    main()
