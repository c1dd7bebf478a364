"""Clips for tests of the pipeline, and their answers without it."""

from tiny import question, tone


CLIPS = {"a": tone(0.5, 300), "b": tone(1.3, 1000), "c": tone(0.9, 2000)}


def by_hand(pipe, chat, **options) -> list[str]:
    """The answers to one chat, without the pipeline."""
    ends = chat[-1]["role"] == "assistant"
    inputs = pipe.processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=not ends, continue_final_message=ends
    )
    tokens = pipe.model.generate(**inputs, **({"max_new_tokens": 8, "do_sample": False} | options))
    return pipe.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def about(pipe, names, text="What?", **options) -> str:
    """The answer to one question about some clips."""
    return by_hand(pipe, question(*[CLIPS[name] for name in names], text=text), **options)[0]


def texts(results) -> list[str]:
    """The first answers of several inputs."""
    return [records[0]["generated_text"] for records in results]
