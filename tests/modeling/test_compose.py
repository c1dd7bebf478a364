"""`falcon3-audio compose`: backbones in, a checkpoint out, or a clear one-line error."""

import copy

import pytest
import torch
from tiny import FALCON3_TEMPLATE, make_llm, make_processor, make_tokenizer, question, tone
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    HubertConfig,
    Wav2Vec2FeatureExtractor,
)

from falcon3_audio.compose import check_answers_can_be_learned, compose
from falcon3_audio_cli import main


def test_compose_makes_a_checkpoint_that_answers(backbone_folders, tmp_path, capsys):
    audio, text = backbone_folders
    folder = tmp_path / "model"
    options = ["--pooling-window", "4", "--projector-type", "linear", "--dtype", "bfloat16"]
    assert main(["compose", "--audio", audio, "--text", text, *options, str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "12.5 per second of audio" in printed and "torch.bfloat16" in printed
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert (model.config.pooling_window, model.config.projector_type) == (4, "linear")
    inputs = processor.apply_chat_template(
        question(tone(1)), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert int((inputs["input_ids"] == processor.audio_token_id).sum()) == 13
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}, "nothing unfinished is left behind"


def test_an_existing_folder_is_not_overwritten(backbone_folders, tmp_path, capsys):
    audio, text = backbone_folders
    (tmp_path / "precious").write_text("weights")
    assert main(["compose", "--audio", audio, "--text", text, str(tmp_path)]) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "weights"


def test_errors_are_one_line_and_leave_nothing(backbone_folders, tmp_path, capsys):
    _, text = backbone_folders
    assert main(["compose", "--audio", text, "--text", text, str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("falcon3-audio compose: ") and "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_another_audio_model_is_refused(backbone_folders, tmp_path, capsys):
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")
    HubertConfig().save_pretrained(tmp_path / "hubert")
    options = ["--audio", str(tmp_path / "hubert"), "--text", backbone_folders[1], str(tmp_path / "model")]
    assert main(["compose", *options]) == 1
    said = capsys.readouterr().err
    assert "must be a Whisper model, got '" in said and "those of a Wav2Vec2FeatureExtractor" in said


def test_only_the_new_projector_is_new_which_needs_no_report(backbone_folders, tmp_path, caplog):
    compose(*backbone_folders, tmp_path / "model")
    assert not any("MISSING" in record.getMessage() for record in caplog.records)


THINKS = FALCON3_TEMPLATE.replace(
    "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}", "{{ '<|assistant|>\n<think>\n' }}{% endif %}{% endfor %}"
)


def test_a_model_whose_answers_cannot_be_learned_is_named(backbone_folders, tmp_path, caplog):
    """As DeepSeek-R1's: the prompt opens thoughts, and answers come without."""
    make_llm().save_pretrained(tmp_path / "thinks")
    make_tokenizer(template=THINKS).save_pretrained(tmp_path / "thinks")
    compose(backbone_folders[0], str(tmp_path / "thinks"), tmp_path / "model")
    (said,) = [record.getMessage() for record in caplog.records if "trained" in record.getMessage()]
    assert said.startswith(
        "This model can be asked and trained with GRPO, but not on given answers: the chat template"
    )
    assert repr("<|assistant|>\n<think>\n")[-12:-1] in said
    with pytest.raises(ValueError, match="the chat template asks for an answer with"):
        check_answers_can_be_learned(AutoProcessor.from_pretrained(tmp_path / "model"))
    compose(*backbone_folders, tmp_path / "other")
    check_answers_can_be_learned(AutoProcessor.from_pretrained(tmp_path / "other"))


def test_a_model_whose_answers_would_begin_with_a_channel_is_named(tmp_path):
    """As gpt-oss: its prompts end before the header of an answer, of which only the special tokens are not shown."""
    template = FALCON3_TEMPLATE.replace(
        "{{ '<|assistant|>\n' + message", "{{ '<|assistant|>\n<|channel|>final<|message|>' + message"
    )
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|channel|>", "<|message|>"]
    processor = make_processor(make_tokenizer(special, template, eos_token="<|endoftext|>"), vocab_size=400)
    with pytest.raises(ValueError, match="more into an answer than its text: 'finalAn answer.' would be learned"):
        check_answers_can_be_learned(processor)


def test_errors_name_options_as_they_are_typed(backbone_folders, tmp_path, capsys):
    audio, text = backbone_folders
    options = ["--audio", audio, "--text", text, "--audio-token", "sound"]
    assert main(["compose", *options, str(tmp_path / "model")]) == 1
    assert "compose: --audio-token must be a token that no text contains, got 'sound'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_without_a_chat_template_is_composed_and_named_once(backbone_folders, tmp_path, caplog, capsys):
    text = tmp_path / "base"
    make_llm().save_pretrained(text)
    make_tokenizer(template=None).save_pretrained(text)
    assert main(["compose", "--audio", backbone_folders[0], "--text", str(text), str(tmp_path / "model")]) == 0
    (said,) = [record.getMessage() for record in caplog.records if "template" in record.getMessage()]
    assert said.startswith(f"The tokenizer of {text} has no chat template") and "instruction-tuned version" in said
    assert "base has no" not in capsys.readouterr().out


def test_a_chat_template_without_an_end_token_is_named(backbone_folders, tmp_path, caplog):
    make_llm().save_pretrained(tmp_path / "text")
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    make_tokenizer(template=template).save_pretrained(tmp_path / "text")
    compose(backbone_folders[0], str(tmp_path / "text"), tmp_path / "model")
    assert "puts no end token after an answer" in caplog.text


SYSTEM_NEEDED = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('A system message is required.') }}{% endif %}"
)
TAKES_LISTS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
HIDDEN_USE = "{{ '>>UNUSED' + '_1<<' }}"
THINKING_NEEDED = "{% if enable_thinking %}{% endif %}" + SYSTEM_NEEDED
CANNOT_RENDER = (
    r"cannot render a question and its answer \(A system message is required\.\). Choose another text backbone"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (SYSTEM_NEEDED, CANNOT_RENDER),
        (THINKING_NEEDED, CANNOT_RENDER),
        (TAKES_LISTS, "The chat template leaves out what the user says if that is a string, not a list"),
        (HIDDEN_USE + FALCON3_TEMPLATE, "`audio_token` must be a token that no prompt contains, got '>>UNUSED_1<<'"),
    ],
    ids=["raises", "raises with thoughts", "lists", "placeholder"],
)
def test_a_chat_template_that_cannot_ask_about_audio_is_refused(template, message, backbone_folders, tmp_path):
    make_llm().save_pretrained(tmp_path / "text")
    make_tokenizer(template=template).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=message):
        compose(backbone_folders[0], str(tmp_path / "text"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_whose_chat_template_fails_cannot_be_trained(processor):
    processor = copy.copy(processor)
    processor.chat_template = SYSTEM_NEEDED
    with pytest.raises(ValueError, match=CANNOT_RENDER):
        check_answers_can_be_learned(processor)


def test_tokens_in_front_of_an_answer_do_not_end_it(backbone_folders, tmp_path):
    """As in chat templates with channels."""
    special = ["<|pad|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>"]
    template = (
        "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}{{ '<|channel|>final' }}"
    )
    template += "{% endif %}{{ '<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    make_llm().save_pretrained(tmp_path / "text")
    make_tokenizer(special, template, eos_token="<|end|>", pad_token="<|pad|>").save_pretrained(tmp_path / "text")
    folder = compose(backbone_folders[0], str(tmp_path / "text"), tmp_path / "model")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 5]


@pytest.mark.parametrize("arguments", [["compose", "OUT"], ["compose", "--preset", "falcon3-audio-9b", "OUT"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "--preset" in capsys.readouterr().err
