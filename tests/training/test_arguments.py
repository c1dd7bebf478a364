"""The options of a run: recipes, the command line over them, and options that check themselves."""

import pytest
from training_runs import parse, write_recipe

from falcon3_audio.processing import UnreadableAudioError
from falcon3_audio.training import grpo, sft
from falcon3_audio.training.arguments import AudioSFTConfig, DataSource
from falcon3_audio.training.checks import check_together


NEEDED = {"model": "some/model", "train_data": ["some.jsonl"], "bf16": False}


@pytest.fixture
def read(tmp_path):
    """Parses a command line over a recipe with the required options and `options`."""

    def read(*line, **options):
        path = write_recipe(tmp_path / "recipe.yaml", output_dir=str(tmp_path / "run"), **(NEEDED | options))
        return parse("--config", path, *line)

    return read


def test_the_defaults_are_the_papers_recipe(read):
    model, lora, data, training = read()
    assert (lora.lora_r, lora.lora_audio_tower, lora.lora_language_model) == (8, "all", "all")
    assert (training.learning_rate, training.num_train_epochs, training.lr_scheduler_type) == (2e-4, 1.0, "cosine")
    assert (model.pooling_window, model.projector_type) == (2, "mlp")
    assert AudioSFTConfig(output_dir="x", use_cpu=True).bf16
    assert data.train_data == [DataSource("some.jsonl", weight=1.0)]


def test_the_command_line_overrides_the_recipe(read):
    model, lora, data, training = read(
        *("--lora_r", "16", "--train_data", "a.jsonl", "b", "--learning_rate", "0.5"),
        lora_r=4,
        lora_dropout=0.25,
        learning_rate="1e-3",
    )
    assert (lora.lora_r, lora.lora_dropout, training.learning_rate) == (16, 0.25, 0.5)
    assert data.train_data == [DataSource("a.jsonl"), DataSource("b")]
    # YAML reads 1e-3 as a string.
    assert read(learning_rate="1e-3")[3].learning_rate == 1e-3


def test_one_way_to_name_the_model_overrides_the_other(read, tmp_path):
    """The command line over the recipe, and a recipe over the one that it extends."""
    backbones = {"model": None, "audio_model": "a", "text_model": "b"}
    names = ("model", "audio_model", "text_model")

    def named(*line, **options):
        model = read(*line, **options)[0]
        return tuple(getattr(model, name) for name in names)

    assert named(**backbones) == (None, "a", "b")
    assert named("--model", "c", **backbones) == named("--model=c", **backbones) == ("c", None, None)
    assert named("--audio_model", "c", "--text-model", "d") == (None, "c", "d")
    assert named("--text_model", "d", **backbones) == (None, "a", "d")
    write_recipe(tmp_path / "parent.yaml", audio_model="a", text_model="b", train_data=["x"], bf16=False)
    assert named(extends="parent.yaml") == ("some/model", None, None)
    assert read("--model", "c", pooling_window=1, audio_token="<sound>", **backbones)[0].pooling_window == 1


def test_one_way_to_give_the_length_overrides_the_other(read, tmp_path):
    def length(*line, **options):
        training = read(*line, **options)[3]
        return training.max_steps, training.num_train_epochs

    assert length("--num_train_epochs", "3", max_steps=480) == (-1, 3)
    assert length("--max-steps=5", num_train_epochs=3) == (5, 1)
    assert length("--learning_rate", "0.5", max_steps=480) == (480, 1)
    write_recipe(tmp_path / "parent.yaml", max_steps=480)
    assert length(extends="parent.yaml", num_train_epochs=2) == (-1, 2)


def test_sets_are_paths_or_mappings(read):
    data = read(train_data=["a", {"path": "b", "weight": 2, "split": "test", "name": "c"}], eval_data=["d"])[2]
    assert data.train_data == [DataSource("a"), DataSource("b", name="c", split="test", weight=2)]
    assert data.eval_data == [DataSource("d")]
    assert read(train_data="alone")[2].train_data == [DataSource("alone")]
    assert read(train_data={"path": "alone", "weight": 0.5})[2].train_data == [DataSource("alone", weight=0.5)]


def test_a_set_says_what_is_asked_and_which_column_is_what(read):
    entry = {"path": "a", "prompt": ["What?", "Which?"], "columns": {"audio": "path", "text": "words"}}
    (source,) = read(train_data=[entry])[2].train_data
    assert source == DataSource("a", prompt=["What?", "Which?"], columns={"audio": "path", "text": "words"})


def test_a_recipe_extends_another(read, tmp_path):
    write_recipe(tmp_path / "parent.yaml", lora_r=4, lora_alpha=7, **NEEDED)
    lora = read(extends="parent.yaml", lora_r=2)[1]
    assert (lora.lora_r, lora.lora_alpha) == (2, 7)
    write_recipe(tmp_path / "parent.yaml", extends="other.yaml", **NEEDED)
    with pytest.raises(ValueError, match="parent.yaml, which itself extends another file"):
        read(extends="parent.yaml")


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ((), {"lora_rank": 4}, "recipe.yaml has options that do not exist: --lora_rank"),
        *(
            (
                line,
                options,
                "argument --learning_rate/--learning-rate: invalid float value: 'fast'. `falcon3-audio train",
            )
            for line, options in ((("--learning_rate", "fast"), {}), ((), {"learning_rate": "fast"}))
        ),
        (("--lora_rank", "4"), {}, "Unknown options: --lora_rank 4"),
        ((), {"extends": "gone.yaml"}, "gone.yaml"),
        ((), {"train_data": []}, "There is no training data"),
        (
            (),
            {"train_data": [{"path": "a", "wieght": 2}]},
            "has wieght; it takes path, name, split, weight, sound, prompt, columns",
        ),
        ((), {"train_data": [7]}, "a path or a mapping with a path, got 7"),
        ((), {"train_data": [{"path": "a", "weight": 0}]}, "weight of a must be a number above 0, got 0"),
        ((), {"train_data": [{"path": "a", "weight": "2"}]}, "weight of a must be a number above 0, got '2'"),
        ((), {"train_data": [{"path": "a", "weight": float("nan")}]}, "weight of a must be a number above 0, got nan"),
        (
            (),
            {"train_data": [{"path": "a", "sound": "no"}]},
            "`sound` of a must be true, some .* or false .* got 'no'",
        ),
        ((), {"train_data": [{"path": "a", "sound": 1}]}, "`sound` of a must be true, some .* got 1"),
        *(
            (
                (),
                {"train_data": [{"path": "a", "prompt": prompt}]},
                "`prompt` of a must be a text or a list of texts, got",
            )
            for prompt in ("", " ", [], ["What?", ""], ["What?", None], 7, {"a": "b"})
        ),
        *(
            ((), {"train_data": [{"path": "a", "columns": columns}]}, "`columns` of a must say which column is what")
            for columns in ("text", ["text"], {"text": None}, {"text": 1}, {"text": ""}, {"text": ["a", "b"]})
        ),
        (
            (),
            {"train_data": [{"path": "a", "columns": {"sentence": "text"}}]},
            "`columns` of a has sentence; a column can be audio, messages, .*duration. The column's own name comes second",
        ),
        ((), {"train_data": [{"path": ""}]}, "needs a `path`"),
        *(
            ((), {option: [{"path": "a", "split": split}]}, "`split` of a must be a text such as train, got ")
            for option in ("train_data", "eval_data")
            for split in (None, "", 7, ["train"])
        ),
        ((), {"eval_data": [{"path": "a", "weight": 2}]}, "`eval_data` are scored once, in full"),
        *(
            ((), {"train_data": [{"path": "a", "streaming": given}]}, "`streaming` of a must be true or false, got")
            for given in ("yes", 1, None)
        ),
        (
            (),
            {"eval_data": [{"path": "a", "streaming": True}]},
            "`eval_data` are scored in full, so they cannot be stre",
        ),
        (
            (),
            {"train_data": [{"path": "a", "streaming": True}, "b", {"path": "c", "split": "dev"}]},
            r"Some sets .* are streamed and others are not \(b, c, split dev\): .* for all of them or for none",
        ),
        ((), {"audio_model": "a", "text_model": "b"}, "Give either `model`, .* or both"),
        ((), {"model": None, "audio_model": "a"}, "got model=None, audio_model='a', text_model=None"),
        ((), {"model": None}, "Give either `model`"),
        (("--model", "c", "--text_model", "d"), {"model": None}, "got model='c', audio_model=None, text_model='d'"),
        (("--text_model", "d"), {}, "got model=None, audio_model=None, text_model='d'"),
        ((), {"audio_token": 7}, "audio_token must be of type str or null, got 7"),
        (
            (),
            {"model": None, "audio_model": "a", "text_model": "b", "pooling_window": 0},
            "`pooling_window` must be a whole number",
        ),
        ((), {"projector_type": "big"}, "projector_type must be one of mlp, linear, got 'big'"),
        ((), {"dtype": "int8"}, "dtype must be one of auto, bfloat16, float16, float32, got 'int8'"),
        ((), {"lora_audio_tower": False}, "lora_audio_tower must be one of all, attention, qv, none, full, got False"),
        ((), {"lora_r": 0}, "lora_r must be at least 1, got 0; .* set both towers to `none`"),
        ((), {"lora_r": 8.5}, "lora_r must be of type int, got 8.5 of type float"),
        ((), {"lora_r": True}, "lora_r must be of type int, got True of type bool"),
        ((), {"model": 3}, "model must be of type str or null, got 3 of type int"),
        ((), {"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ((), {"packing": True}, "packing must stay off"),
        ((), {"padding_free": True}, "padding_free must stay off"),
        ((), {"assistant_only_loss": True}, "assistant_only_loss must stay off"),
        ((), {"remove_unused_columns": True}, "remove_unused_columns must stay off"),
        ((), {"auto_find_batch_size": True}, "auto_find_batch_size must stay off"),
        ((), {"ignore_data_skip": True}, "ignore_data_skip must stay off"),
        ((), {"chat_template_path": "other"}, "chat_template_path must stay off"),
        ((), {"train_sampling_strategy": "group_by_length"}, "must stay `random`, got 'group_by_length'"),
        ((), {"save_only_model": True}, "save_only_model must stay off"),
        (
            (),
            {"loss_type": "dft", "label_smoothing_factor": 0.1},
            "has no effect with loss_type `dft`; leave one of the two out",
        ),
        ((), {"enable_jit_checkpoint": True}, "enable_jit_checkpoint must stay off"),
        ((), {"report_to": "clearml"}, "report_to: clearml is not installed; available: tensorboard.*set `none`"),
        ((), {"max_bad_audio": 1.5}, "max_bad_audio must be a share from 0 to 1, got 1.5"),
        ((), {"lora_language_model": "full"}, "An adapter cannot hold a whole language model"),
        ((), {"audio_tower_trainable_layers": 2}, "audio_tower_trainable_layers=2 needs lora_audio_tower: full"),
        ((), {"lora_r_audio_tower": 0}, "lora_r_audio_tower must be at least 1, got 0"),
        (
            (),
            {"lora_audio_tower": "none", "lora_language_model": "none", "use_dora": True},
            "are for LoRA, which no tower uses",
        ),
        ((), {"max_length": 0}, "max_length must be at least 1 token"),
        (
            (),
            {"load_best_model_at_end": True},
            "load_best_model_at_end and early_stopping_patience compare evaluations",
        ),
        ((), {"early_stopping_patience": 2}, "load_best_model_at_end and early_stopping_patience compare evaluations"),
        ((), {"early_stopping_patience": 0, "eval_strategy": "epoch"}, "early_stopping_patience must be at least 1"),
        (
            (),
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_total_limit": 1},
            "save_total_limit must be at least 2 with load_best_model_at_end",
        ),
        (
            (),
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 50, "save_steps": 70},
            "every evaluated step is saved: leave out save_steps=70",
        ),
        ((), {"learning_rate": None}, "learning_rate must be of type float, got None of type NoneType"),
        ((), {"learning_rate": [4, 8]}, r"learning_rate must be of type float, got \[4, 8\] of type list"),
        ((), {"max_steps": 1.5}, "max_steps must be of type int, got 1.5 of type float"),
        ((), {"eval_steps": True}, "eval_steps must be of type float or null, got True of type bool"),
        ((), {"questions_per_row": 0}, "questions_per_row must be at least 1, or null for all; got 0"),
        (
            (),
            {"global_batch_size": 3, "per_device_train_batch_size": 2},
            "global_batch_size=3 is not a multiple of the 2",
        ),
        ((), {"global_batch_size": 0, "per_device_train_batch_size": 2}, "global_batch_size=0 is not a multiple"),
        ((), {"accelerator_config": {"split_batches": True}}, "accelerator_config.split_batches must stay off"),
        ((), {"tokens_per_device": 4096, "include_num_input_tokens_seen": True}, "every log line has num_tokens"),
        ((), {"tokens_per_device": 63, "max_length": 64}, "less than the longest example, max_length=64"),
        (
            (),
            {"tokens_per_device": 4096, "global_batch_size": 16, "per_device_train_batch_size": 4},
            "packs the 16 questions that each device gets per step.*set tokens_per_device to 0",
        ),
        (
            (),
            {"tokens_per_device": 4096, "global_batch_size": 0},
            "global_batch_size=0 cannot be divided evenly among 1 device",
        ),
        ((), {"global_batch_size": 16, "gradient_accumulation_steps": 7}, "needs 2 gradient accumulation .*_steps=7"),
    ],
)
def test_mistakes_are_one_clear_line(read, tmp_path, capsys, line, options, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        read(*line, **options)
    assert sft.main(["--config", str(tmp_path / "recipe.yaml"), *line]) == 1
    said = capsys.readouterr().err
    assert said == f"falcon3-audio train: {error.value}\n" and "free disk space" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "recipe.yaml is not valid YAML"),
        ("b: 1\na: {c: 1, d: 2, c: 3}", "'c' is given twice in \"{path}\", line 2, column 17"),
        ("a: 1\na: 2", "'a' is given twice in \"{path}\", line 2, column 1"),
        ("- a", "must be a YAML mapping, got list"),
        ("a: \u00fc", "{path} is not UTF-8 ("),
    ],
)
def test_a_recipe_that_is_none(tmp_path, capsys, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="latin-1")
    assert sft.main(["--config", str(path)]) == 1
    assert message.format(path=path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        (sft, " Add --on_bad_audio skip to train without such clips; `falcon3-audio check-data` lists all of them."),
        (grpo, ""),
    ],
)
def test_a_clip_that_cannot_be_read_can_be_skipped(program, advice, tmp_path, capsys, monkeypatch):
    def train(*options):
        raise UnreadableAudioError("some.jsonl, row 3: the audio is damaged.")

    monkeypatch.setattr(program, "train", train)
    recipe = write_recipe(tmp_path / "recipe.yaml", output_dir=str(tmp_path / "run"), **NEEDED)
    assert program.main(["--config", recipe]) == 1
    said = capsys.readouterr().err
    assert said.endswith(f": some.jsonl, row 3: the audio is damaged.{advice}\n")


def test_the_global_batch_sets_the_accumulation(read):
    training = read(global_batch_size=12, per_device_train_batch_size=3)[3]
    assert training.gradient_accumulation_steps == 4
    assert read(gradient_accumulation_steps=5)[3].gradient_accumulation_steps == 5
    assert read(global_batch_size=16, gradient_accumulation_steps=2)[3].gradient_accumulation_steps == 2


@pytest.mark.parametrize(("batch", "at_once", "times"), [(4, 4, 1), (1, 1, 1), (12, 6, 2), (17, 1, 17), (32, 8, 4)])
def test_any_global_batch_works_without_more(read, batch, at_once, times):
    training = read(global_batch_size=batch)[3]
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (at_once, times)
    assert read()[3].per_device_train_batch_size == 8


def test_a_budget_of_tokens_takes_the_whole_step(read):
    training = read(global_batch_size=12, tokens_per_device=4096)[3]
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (12, 1)
    training = read(global_batch_size=12, tokens_per_device=0, per_device_train_batch_size=3)[3]
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (3, 4)
    assert read(per_device_train_batch_size=3, tokens_per_device=4096)[3].per_device_train_batch_size == 3


def test_several_gpus_need_a_process_each(read, monkeypatch):
    *_, data, training = read()
    check_together(data, training)
    monkeypatch.setattr(type(training), "n_gpu", 2)
    with pytest.raises(ValueError, match="One process sees 2 GPUs. Start one process per GPU"):
        check_together(data, training)


def test_activation_checkpointing_is_on_unless_it_is_turned_off(read):
    for options, expected in (
        ({}, True),
        ({"activation_checkpointing": False}, False),
        ({"gradient_checkpointing": False}, False),
    ):
        training = read(**options)[3]
        # transformers renames the option; TRL reads the old name.
        assert bool(training.gradient_checkpointing) is expected, options
        assert bool(training.activation_checkpointing) is expected, options
