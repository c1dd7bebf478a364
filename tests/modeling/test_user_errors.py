"""How programs exit."""

import pytest
from safetensors import SafetensorError

from falcon3_audio.user_errors import user_errors


def ended(error, *others, **options):
    """The exit status of a program that raises `error`."""
    with user_errors("falcon3-audio sing", *others, **options) as end:
        if error is not None:
            raise error
    return end.status


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no\n  such  \n\nnote"),
        FileNotFoundError("no\nsuch note"),
        ImportError("no such note"),
        SafetensorError("no such note"),
    ],
)
def test_errors_of_the_user_are_one_line(error, capsys):
    assert ended(error) == 1
    assert capsys.readouterr() == ("", "falcon3-audio sing: no such note\n")


def test_spaces_within_a_line_stay_and_lines_may(capsys):
    assert ended(ValueError("got 'my  file'")) == 1
    assert capsys.readouterr().err == "falcon3-audio sing: got 'my  file'\n"
    assert ended(ValueError("remove these:\n  rm a"), join_lines=False) == 1
    assert capsys.readouterr().err == "falcon3-audio sing: remove these:\n  rm a\n"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("ours"), KeyError("ours"), AttributeError("ours"), ImportError("ours", name="falcon3_audio.x")],
)
def test_faults_of_ours_keep_their_traceback(error, capsys):
    with pytest.raises(type(error)) as raised:
        ended(error)
    assert raised.value is error and capsys.readouterr().err == ""


def test_a_program_may_have_errors_and_words_of_its_own(capsys):
    assert ended(RuntimeError("too high"), RuntimeError, explain=lambda error: f"the voice is {error}") == 1
    assert capsys.readouterr().err == "falcon3-audio sing: the voice is too high\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError("no breath"), "no breath. Go on."),
        (RuntimeError("No breath."), "No breath. Go on."),
        (RuntimeError("No breath?"), "No breath? Go on."),
        (ValueError("no such note"), "no such note"),
    ],
)
def test_after_what_breaks_from_outside_the_same_command_goes_on(error, said, capsys):
    assert ended(error, breaks=(OSError, RuntimeError), goes_on="Go on.") == 1
    assert capsys.readouterr().err == f"falcon3-audio sing: {said}\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "stopped. Run the same command again to start over."),
        ({"goes_on": "Run the same command again."}, "stopped. Run the same command again."),
        ({"goes_on": ""}, "stopped."),
    ],
)
def test_an_interrupt_is_one_line_that_says_how_to_go_on(options, said, capsys):
    assert ended(KeyboardInterrupt(), **options) == 130
    assert capsys.readouterr().err == f"falcon3-audio sing: {said}\n"


def test_what_goes_well_and_what_exits_by_itself(capsys):
    assert ended(None) == 0
    with pytest.raises(SystemExit):
        ended(SystemExit(2))
    assert capsys.readouterr() == ("", "")
