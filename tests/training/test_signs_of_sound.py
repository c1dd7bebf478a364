"""What looks like audio: tags for clips, names of files and of columns."""

import re
from pathlib import Path

import pytest
from training_runs import assistant, user

from falcon3_audio.training.data.chats import check_sound_is_read, clips_of, fill_in
from falcon3_audio.training.data.signs_of_sound import looks_like_sound


IN_ANY_TEXT = (
    *(
        "<AUDIO>",
        "<audio/>",
        "<audio />",
        "< audio >",
        "<audio-1>",
        "<audio 1>",
        "<audio_1>",
        "<|audio:1|>",
        "</audio>",
    ),
    *("<start_of_audio>", "<|startofaudio|>", "<|begin_of_audio|>", "<|AUDIO|>", "<mm_audio>", "<AudioHere>"),
    *("<sound>", "<|speech|>", "<sound_placeholder>", "<\u200baudio>"),
)
IN_A_ROW_WITH_CLIPS = (
    *('<audio src="c0.wav">', "<audio src='c0.wav' controls>", "<your audio here>", "<audio c0.wav>", "<c0.mp3>"),
    *("<wav>", "<voice>", "<music>", "<clip>", "<clip_1>", "<media>", "<|media|>", "<__media__>", "<recording>"),
    *("<image>", "<video>", "<ImageHere>", "&lt;audio&gt;", "＜audio＞"),
    *("[audio]", "[AUDIO]", "[[audio]]", "{audio}", "{{audio}}", "[audio 1]", "[audio: c0.wav]", "[sound:c0.wav]"),
)
NO_TAGS = (
    *("I <3 music > all", "if a < b and the music > c", "x<5 or the audio>3", "<b>music</b>", "a <- audio -> b"),
    *("<invoice>", "<microwave>", "<intermediate>", "[music]", "[speech]", '{"audio": 1}', "[audio, text]", "(audio)"),
)
FORMS_OF_ANSWERS = (
    *("What is the mood of the <music>?", "Answer as JSON {audio: ...}", "Answer as <sound event>, <time>"),
    *("Tag it [audio_quality: good]", "Reply with <voice>male</voice>", "Is a<b and audio c>d?", "data[audio_id]"),
    *("Write <image> alt text", "Mark unclear words as [inaudible audio]", "Format: <audio clip> | <seconds>"),
)
CODE = ("#include <SoundFile.h>", "vector<AudioFile>", "List<Sound> a;", "Map<Speech>", "import <core.audio.hpp>")
ANY = [*IN_ANY_TEXT, *IN_A_ROW_WITH_CLIPS]


def texts_of(messages):
    return [item["text"] for message in messages for item in message["content"] if item["type"] == "text"]


@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize("tag", ANY)
def test_what_looks_like_a_clips_place_is_refused(tag, role):
    chat = [{"role": role, "content": f"Listen: {tag}What is it?"}, user("Well?"), assistant("A dog.")]
    for text in (chat[0]["content"], [{"type": "text", "text": chat[0]["content"]}]):
        with pytest.raises(ValueError, match=f"the tag {re.escape(tag)} in the text is not read: .* written <audio>"):
            fill_in([chat[0] | {"content": text}, *chat[1:]], ["c0.wav"], Path("/x"))
    with pytest.raises(ValueError, match=re.escape(f"the tag {tag} in the text is not read")):  # next to a real one
        fill_in([user(f"<audio>{tag}?"), assistant("A dog.")], ["c0.wav", "c1.wav"], Path("/x"))
    # In a text-only set, and in an answer to a question that has a place.
    assert texts_of(fill_in(chat, [], Path("/x"), tags=False))[0] == chat[0]["content"]
    assert texts_of(fill_in([user("<audio>?"), assistant(tag)], ["c0.wav"], Path("/x"))) == ["?", tag]


@pytest.mark.parametrize("tag", ANY)
def test_a_row_without_clips_can_have_other_tags(tag):
    chat = [user(f"What does {tag} mean?"), assistant("No idea.")]
    if tag in IN_ANY_TEXT:
        with pytest.raises(ValueError, match=re.escape(f"the tag {tag} in the text")):
            fill_in(chat, [], Path("/x"))
    else:
        assert texts_of(fill_in(chat, [], Path("/x")))[0] == chat[0]["content"]


@pytest.mark.parametrize("tag", ANY)
def test_if_each_clip_has_a_place_only_tags_of_one_word_are_refused(tag):
    chat = [user(f"<audio>{tag}?"), assistant("A dog.")]
    if tag in IN_ANY_TEXT:
        with pytest.raises(ValueError, match=re.escape(f"the tag {tag} in the text")):
            fill_in(chat, ["c0.wav"], Path("/x"))
    else:
        assert texts_of(fill_in(chat, ["c0.wav"], Path("/x")))[0] == f"{tag}?"


@pytest.mark.parametrize("text", FORMS_OF_ANSWERS)
def test_a_question_can_have_a_form_of_answers(text):
    filled = fill_in([user(f"<audio>{text}"), assistant("A dog.")], ["c0.wav"], Path("/x"))
    assert filled[0]["content"][0]["type"] == "audio" and texts_of(filled) == [text, "A dog."]
    heard = [{"type": "audio"}, {"type": "text", "text": text}]
    assert texts_of(fill_in([user(*heard), assistant("A dog.")], ["c0.wav"], Path("/x"))) == [text, "A dog."]


@pytest.mark.parametrize("text", CODE)
def test_code_has_no_tags(text):
    assert texts_of(fill_in([user(text), assistant("Yes.")], [], Path("/x"))) == [text, "Yes."]


@pytest.mark.parametrize("texts", [["List", "<audio_1>"], ["List<|audio_1|>"], ["List</audio>"], ["请听<audio_1>"]])
def test_tags_after_words_are_refused(texts):
    parts = [{"type": "text", "text": text} for text in texts]
    with pytest.raises(ValueError, match="the tag .*audio.* in the text is not read"):
        fill_in([user(*parts), assistant("Yes.")], [], Path("/x"))


@pytest.mark.parametrize("text", NO_TAGS)
def test_other_texts_are_kept(text):
    filled = fill_in([user(text), assistant(text)], ["c0.wav"], Path("/x"))
    assert [item["type"] for item in filled[0]["content"]] == ["audio", "text"] and texts_of(filled) == [text, text]


def test_a_place_in_an_answer_is_refused_if_there_is_no_other():
    """The clips would be put into the question, and the tag would be learned."""
    tag = "<audio>"
    chat = [user("What?"), assistant("A dog."), user("And?"), assistant(f"It was {tag}.")]
    with pytest.raises(ValueError, match="message 3, an answer, has the tag <audio>, .*Write it into the question"):
        fill_in(chat, ["c0.wav"], Path("/x"))
    assert texts_of(fill_in(chat, ["c0.wav"], Path("/x"), tags=False))[-1] == f"It was {tag}."
    heard = [{"type": "audio", "path": "c0.wav"}, {"type": "text", "text": "What?"}]
    assert texts_of(fill_in([user(*heard), *chat[1:]], [], Path("/x")))[-1] == f"It was {tag}."


@pytest.mark.parametrize("answer", ["<speech>hi</speech>", "<sound>dog", *ANY])
def test_an_answer_can_have_other_tags(answer):
    assert texts_of(fill_in([user("What?"), assistant(answer)], ["c0.wav"], Path("/x"))) == ["What?", answer]


@pytest.mark.parametrize(
    "text", ["<" + "audio" * 20_000, "<" + "a" * 99_999 + ">", "[" * 99_999, "<|" * 50_000 + "audio"]
)
def test_long_texts_are_read_once(text):
    """A pattern that begins again at every character would take minutes here."""
    assert texts_of(fill_in([user(text), assistant("A dog.")], ["c0.wav"], Path("/x")))[0] == text


NAMES = (
    "aiff",
    "aif",
    "mp4",
    "amr",
    "wma",
    "oga",
    "3gp",
    "caf",
    "wav",
    "MP3",
    "flac",
    "ogg",
    "opus",
    "m4a",
    "aac",
    "webm",
)


@pytest.mark.parametrize("ending", NAMES)
def test_files_of_sound_under_any_key_are_noticed(ending):
    for value in (f"clips/0.{ending}", f"https://host/0.{ending}?sig=a&t=1", [f"0.{ending}"], {"path": f"0.{ending}"}):
        with pytest.raises(ValueError, match="the key 'input' looks like audio but is not read"):
            check_sound_is_read({"input": value}, [], [], ())
    for value in (f"What is .{ending}?", f"0.{ending}.txt", {"path": None}, None, []):
        check_sound_is_read({"input": value}, [], [], ())


@pytest.mark.parametrize("name", ["audio", "sound", "audio_path", "wavs", "clips", "file_name"])
def test_columns_with_names_of_sound_are_noticed(name):
    assert looks_like_sound(name, b"...") and looks_like_sound(name, ["a"]) and not looks_like_sound(name, None)
    assert looks_like_sound(name, {"id": 7}) and not looks_like_sound(name, [None])
    assert not looks_like_sound("transcript", "a") and not looks_like_sound("mp3s", 3)


@pytest.mark.parametrize("name", ["speech", "voice", "voices", "recording", "Speech_file", "my-voice", "mp3", "FLAC"])
def test_names_of_sound_and_of_texts_need_a_value_that_could_be_sound(name):
    for value in (
        b"RIFF",
        {"bytes": b"RIFF"},
        {"bytes": None, "path": "0"},
        {"array": [0.1], "sampling_rate": 8_000},
        [0.1, -0.1],
        "a.wav",
    ):
        assert looks_like_sound(name, value) and looks_like_sound(name, [None, value])
    assert looks_like_sound(name, "data:audio/wav;base64,UklGRg==") and looks_like_sound(name, "https://a.b/c.mp3?d=e")
    for value in ("active", "2020", 3, 0.5, True, None, [], ["calm"], {"pitch": 3}, {"bytes": None, "path": None}):
        assert not looks_like_sound(name, value)


@pytest.mark.parametrize(
    "row",
    [
        *({"invoice_id": "A-17"}, {"speech_act": "question"}, {"recording_date": "2020"}, {"mov": "the film"}),
        *({"ape": "x"}, {"voice": "active"}, {"voice_gender": ["f"]}, {"invoices": b"PDF"}, {"meta": {"audio_id": 7}}),
        *({"meta": {"audio": None}}, {"meta": [{"sound_quality": "good"}]}, {"meta": {"voice": "active"}}),
    ],
)
def test_rows_of_texts_can_have_ordinary_columns(row):
    check_sound_is_read(row, [], [], ())


@pytest.mark.parametrize(
    "value",
    [
        *({"audio": b"RIFF"}, {"a": {"voice": b"RIFF"}}, [{"text": "x"}, {"clip": {"bytes": b"RIFF", "path": None}}]),
        *({"sound": {"array": [0.1], "sampling_rate": 8_000}}, {"speech": [b"RIFF"]}, {"x": ["a", "b.wav"]}),
    ],
)
def test_clips_inside_other_columns_are_noticed(value):
    with pytest.raises(ValueError, match="the key 'meta' looks like audio but is not read"):
        check_sound_is_read({"meta": value}, [], [], ())


@pytest.mark.parametrize("name", ["sampling_rate", "sample_rate", "Samplerate", "audio_sample_rate", "sr", "rate"])
def test_a_rate_next_to_samples_is_not_passed_over(name):
    samples = [0.1, -0.1]
    for row in ({"audio": samples}, {"audios": [samples, samples]}):
        with pytest.raises(ValueError, match=f"is samples, and `{name}`, .*is not read. Write each clip as"):
            clips_of(row | {name: 8_000})
    whole = {"array": samples, "sampling_rate": 8_000}
    for clip in (whole, "0.wav", b"RIFF"):  # which have a rate
        assert clips_of({"audio": clip, name: 8_000}) == [clip] == clips_of({"audios": [clip], name: 8_000})
    assert clips_of({"audio": samples, "generated": 3, "speech_rate": 2, name: None}) == [samples]
