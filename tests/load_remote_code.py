"""Loads a saved folder without falcon3_audio, asks one question, saves the model, and repeats this with the copy.

Run by tests as `python -I load_remote_code.py FOLDER CLIP.npy RATE SAVE_TO`; prints one line of JSON for each round:
the classes found, the tokens generated and the answers of the pipeline.
"""

import json
import sys


sys.modules["falcon3_audio"] = None  # importing it fails

import numpy as np  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline  # noqa: E402


QUESTION = "What do you hear?"
TRUST = {"trust_remote_code": True}
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def ask(folder: str, clip: np.ndarray, rate: int):
    names = [
        type(auto.from_pretrained(folder, **TRUST)).__name__ for auto in (AutoConfig, AutoFeatureExtractor, AutoModel)
    ]
    for auto in ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForMultimodalLM"):
        model = getattr(transformers, auto).from_pretrained(folder, **TRUST)
        names.append(type(model).__name__)
    processor = AutoProcessor.from_pretrained(folder, **TRUST)
    item = {"type": "audio", "audio": clip, "sampling_rate": rate}
    chat = [{"role": "user", "content": [item, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    tokens = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    pipe = pipeline("audio-text-to-text", model=folder, prompt_cache_tokens=1000, **TRUST)
    said = pipe(clip, text=QUESTION, sampling_rate=rate, **GREEDY)[0]["generated_text"]
    # The common prefix of prompts is computed once per batch; the answers must equal those of single prompts.
    texts = [QUESTION, "Why is that?", QUESTION]
    alone, together = (
        [
            records[0]["generated_text"]
            for records in pipe(clip, text=texts, sampling_rate=rate, batch_size=n, **GREEDY)
        ]
        for n in (1, 3)
    )
    result = {"classes": names, "tokens": tokens.tolist(), "said": said, "alone": alone, "together": together}
    print("RESULT", json.dumps(result))
    return model, processor


def main(folder: str, clip_file: str, rate: str, save_to: str):
    clip = np.load(clip_file)
    model, processor = ask(folder, clip, int(rate))
    model.save_pretrained(save_to)
    processor.save_pretrained(save_to)
    ask(save_to, clip, int(rate))


if __name__ == "__main__":
    main(*sys.argv[1:])
