"""Thoughts and markup as models write them, and what is left of a reply without them."""

import pytest

from falcon3_audio.evaluation.read_option import resolve
from falcon3_audio.evaluation.unwrap_reply import without_thoughts


ANIMALS = ("Dog", "Cat", "Two birds", "Rain")
THOUGHTS = {
    "DeepSeek-R1, Qwen3": "<think>{}</think>\n\n",
    "a chat template that opens them": "{}</think>",
    "Magistral": "[THINK]{}[/THINK]",
    "Seed-OSS": "<seed:think>{}</seed:think>",
    "Kimi": "◁think▷{}◁/think▷",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "gpt-oss, JSON": "<|channel|>analysis<|message|>{}<|end|><|channel|>final <|constrain|>json<|message|>",
    "gpt-oss without special tokens": "analysis{}assistantfinal",
    "Gemma": "<|channel>thought\n{}<channel|>",
    "MedGemma": "<unused94>thought\n{}<unused95>",
    "OpenThinker": "<|begin_of_thought|>{}<|end_of_thought|>\n\n<|begin_of_solution|>",
    "Command A": "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>",
    "Granite 3.2": "Here is my thought process:\n{}\nHere is my response:\n",
    "Granite 3.3": "<think>{}</think><response>",
    "LongCat": "<longcat_think>{}</longcat_think>\n",
    "Apertus": "<|inner_prefix|>{}<|inner_suffix|>",
    "EXAONE": "<thought>\n{}\n</thought>\n\n",
    "Audio-Reasoner": "<THINK><PLANNING>{}</PLANNING><CAPTION>dog</CAPTION><SUMMARY>dog</SUMMARY></THINK><RESPONSE>",
    "LLaVA-CoT": "<SUMMARY>{}</SUMMARY><CAPTION>dog</CAPTION><REASONING>dog</REASONING><CONCLUSION>",
    "several": "<thinking>{}</thinking><reflection>A dog.</reflection><output>",
    "scratchpad": "<SCRATCHPAD>{}</SCRATCHPAD>",
}


@pytest.mark.parametrize("model", THOUGHTS)
@pytest.mark.parametrize("thought", ["A dog?", "It is a dog. The answer is A.", "<answer>Dog</answer>? Hmm"])
def test_thoughts_are_set_aside(model, thought):
    thoughts = THOUGHTS[model].format(thought)
    for answer in ("B", "(B) Cat", "Cat.", "The answer is B.", "\\boxed{B}", "<answer>B</answer>", '{"answer": "B"}'):
        assert resolve(thoughts + answer, ANIMALS) == "Cat"
        assert resolve(thoughts + answer + "<|im_end|>", ANIMALS) == "Cat"


@pytest.mark.parametrize("model", THOUGHTS)
def test_thoughts_that_were_cut_off_mean_no_option(model):
    opening, found, _ = THOUGHTS[model].partition("{}")
    assert found and resolve(opening + "It is a dog", ANIMALS) == (None if opening else "Dog")


@pytest.mark.parametrize(
    "reply",
    [
        "<answer>B</answer><reasoning>A dog would bark.</reasoning>",
        "<answer>B</answer><explanation>A dog.</explanation><confidence>0.9</confidence>",
        "B <think>A dog would bark.</think>",
    ],
)
def test_thoughts_can_follow_the_answer(reply):
    assert resolve(reply, ANIMALS) == "Cat"


@pytest.mark.parametrize("said", ["B", "(B)", "B. Cat", "Cat"])
@pytest.mark.parametrize(
    "markup",
    [
        *(
            "<response>{}</response>",
            "<RESPONSE>\n{}\n</RESPONSE>",
            "<CONCLUSION>{}",
            "<final_answer>{}</final_answer>",
        ),
        *("<solution>{}</solution>", "<output>{}</output>", "<result>{}</result>", "[ANSWER]{}[/ANSWER]", "<b>{}</b>"),
        *(
            "I hear a dog. <|begin_of_box|>{}<|end_of_box|>",
            "<answer>: {}</answer>",
            "\\text{{{}}}",
            "$\\mathbf{{{}}}$",
        ),
        *(
            "\\fbox{{{}}}",
            "\\[\\boxed{{\\mathrm{{{}}}}}\\]",
            "\\( \\boxed{{{}}} \\)",
            "```\n{}\n```",
            '["{}"]',
            "{{'{}'}}",
        ),
        *('{{"answer_choice": "{}"}}', '{{"selected_option": "{}"}}', '{{"result": "{}"}}', '{{"finalAnswer": "{}"}}'),
        *('{{"predicted_label": "{}"}}', '{{"Correct Option": "{}"}}', '{{"response": "{}"}}', '{{"答案": "{}"}}'),
        *('{{"answer_letter": "{}", "answer_text": "Cat"}}', '{{"options": ["Dog", "Cat"], "answer": "{}"}}'),
        *(
            '```json\n["{}"]\n```',
            '{{"result": "{}", "reason": "a dog would bark"}}',
            '{{"answer": {{"letter": "{}"}}}}',
        ),
        *("{}<|eot_id|>", "{}</s>A dog", "{}<|im_end|>\n<|im_start|>user\nIs it a dog?", "<|im_start|>assistant\n{}"),
    ],
)
def test_an_answer_in_markup(markup, said):
    assert resolve(markup.format(said), ANIMALS) == "Cat"


@pytest.mark.parametrize(
    "reply",
    [
        '{"answer": "A", "prediction": "B"}',
        '{"label": "Dog", "result": "B"}',
        '{"result": "B", "response": "A dog would bark."}',
        '["A", "B"]',
        '{"answer": "", "reason": "a dog would bark"}',
    ],
)
def test_fields_that_contradict_each_other_mean_no_option(reply):
    assert resolve(reply, ANIMALS) is None


def test_of_a_repeated_field_the_last_counts():
    assert resolve('{"answer": "A"} No: {"answer": "B"}', ANIMALS) == "Cat"


def test_only_tagged_thoughts_are_taken_out_of_a_text():
    for text in (
        "<caption>A dog</caption>",
        "[thunder] A dog",
        "Here is my response: yes",
        "analysis of a dog",
        " a ",
    ):
        assert without_thoughts(text) == text
    for text in ("<think>Hm.</think>\nA dog", "Hm.</think>A dog", "[THINK]Hm[/THINK]A dog", "◁think▷Hm◁/think▷ A dog"):
        assert without_thoughts(text) == "A dog"
