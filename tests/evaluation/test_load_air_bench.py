"""Small files in the layout of AIR-Bench: metadata and folders."""

import hashlib

import pytest
from benchmark_files import without, write_clip, write_json

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.load_air_bench import CHAT, FOUNDATION, load_chat, load_foundation


CHOICE = {
    "path": "1.wav",
    "question": "What emotion is it?",
    "choice_a": "happy",
    "choice_b": "sad",
    "choice_c": "angry",
    "choice_d": "calm",
    "answer_gt": "angry",
    "task_name": "Speaker_Emotion_Recontion",
    "dataset_name": "meld",
    "uniq_id": 0,
}
OPEN = {
    "path": "1.mp3",
    "question": "What does the speaker want?",
    "answer_gt": "A ticket.",
    "meta_info": "A man asks for a ticket; a train passes.",
    "task_name": "speech_and_sound_QA",
    "dataset_name": "audiocaps_cv",
    "uniq_id": 0,
}


def clip_path(track, row):
    return f"{track}/{row['task_name']}_{row['dataset_name']}/{row['path']}"


def foundation(root, *rows, **options):
    return load_foundation(write_json(root / "Foundation" / "Foundation_meta.json", list(rows)), **options)


def chat(root, *rows, **options):
    return load_chat(write_json(root / "Chat" / "Chat_meta.json", list(rows)), **options)


def test_a_foundation_question_is_read(tmp_path):
    content = write_clip(tmp_path / clip_path("Foundation", CHOICE))
    loaded = foundation(tmp_path, CHOICE)
    (question,) = loaded.questions
    assert (question.id, question.question, question.answer) == ("0", "What emotion is it?", "angry")
    assert question.choices == ("happy", "sad", "angry", "calm")
    assert question.groups == {"task": "Speaker_Emotion_Recontion", "domain": "speech", "dataset": "meld"}
    assert question.audio[0].name == "Speaker_Emotion_Recontion_meld/1.wav"
    assert question.audio[0].read() == content and question.description is None
    metadata = tmp_path / "Foundation" / "Foundation_meta.json"
    assert loaded.sha256 == {"Foundation_meta.json": hashlib.sha256(metadata.read_bytes()).hexdigest()}
    assert loaded.benchmark == "air-bench-foundation"


def test_the_same_file_name_in_two_tasks_is_two_clips(tmp_path):
    other = CHOICE | {"task_name": "Speaker_Gender_Recognition", "uniq_id": 1}
    contents = [
        write_clip(tmp_path / clip_path("Foundation", row), pitch) for row, pitch in ((CHOICE, 300), (other, 500))
    ]
    first, second = foundation(tmp_path, CHOICE, other).questions
    assert first.audio[0].name != second.audio[0].name
    assert [first.audio[0].read(), second.audio[0].read()] == contents


def test_audio_grounding_is_flac_though_the_metadata_say_wav(tmp_path):
    row = CHOICE | {"task_name": "Audio_Grounding", "dataset_name": "AudioGrounding"}
    folder = tmp_path / "Foundation" / "Audio_Grounding_AudioGrounding"
    write_clip(folder / "1.flac")
    write_clip(folder / "2.v.flac")
    rows = [row, row | {"path": "2.v.wav", "uniq_id": 1}, row | {"path": "1.flac", "uniq_id": 2}]
    questions = foundation(tmp_path, *rows).questions
    names = [question.audio[0].name.split("/")[1] for question in questions]
    assert names == ["1.flac", "2.v.flac", "1.flac"]
    assert {question.audio[0].read()[:4] for question in questions} == {b"fLaC"}
    # Other tasks have the format that the metadata say.
    write_clip(tmp_path / clip_path("Foundation", CHOICE))
    assert foundation(tmp_path, CHOICE).questions[0].audio[0].read()[:4] == b"RIFF"


@pytest.mark.parametrize(
    "row, choices",
    [
        (without(CHOICE, "choice_d"), ("happy", "sad", "angry")),
        (without(without(CHOICE, "choice_c"), "choice_d") | {"answer_gt": "sad"}, ("happy", "sad")),
        (CHOICE | {"choice_c": None, "choice_d": None, "answer_gt": "sad"}, ("happy", "sad")),
    ],
)
def test_options_c_and_d_may_be_missing(tmp_path, row, choices):
    write_clip(tmp_path / clip_path("Foundation", row))
    assert foundation(tmp_path, row).questions[0].choices == choices


def test_foundation_has_19_tasks_in_three_domains():
    domains = list(FOUNDATION.values())
    assert [domains.count(name) for name in ("speech", "sound", "music")] == [9, 4, 6] and len(domains) == 19


def test_a_chat_question_is_read(tmp_path):
    content = write_clip(tmp_path / clip_path("Chat", OPEN))
    loaded = chat(tmp_path, OPEN)
    (question,) = loaded.questions
    assert (question.id, question.question, question.choices) == ("0", "What does the speaker want?", ())
    assert (question.answer, question.description) == ("A ticket.", "A man asks for a ticket; a train passes.")
    assert question.groups == {"task": "speech_and_sound_QA", "domain": "speech_and_sound", "dataset": "audiocaps_cv"}
    assert question.audio[0].read() == content and loaded.benchmark == "air-bench-chat"


def test_chat_domains_are_those_of_the_published_averages():
    by_domain = {domain: {task for task in CHAT if CHAT[task] == domain} for domain in CHAT.values()}
    assert by_domain == {
        "speech": {"speech_QA", "speech_dialogue_QA"},
        "sound": {"sound_QA", "sound_generation_QA"},
        "music": {"music_QA", "music_generation_analysis_QA"},
        "speech_and_sound": {"speech_and_sound_QA"},
        "speech_and_music": {"speech_and_music_QA"},
    }


@pytest.mark.parametrize("track, load, row", [("Foundation", load_foundation, CHOICE), ("Chat", load_chat, OPEN)])
def test_metadata_may_lie_apart_from_the_audio(tmp_path, track, load, row):
    write_clip(tmp_path / "air" / clip_path(track, row))
    metadata = write_json(tmp_path / "elsewhere" / "meta.json", [row])
    assert load(metadata, audio_root=tmp_path / "air").questions[0].audio[0].read()
    with pytest.raises(ValueError, match="audio file missing in 1 "):
        load(metadata)


@pytest.mark.parametrize(
    "row, reason",
    [
        (CHOICE | {"answer_gt": "C"}, "answer not among the choices"),
        (CHOICE | {"path": "2.wav"}, "audio file missing"),
        (CHOICE | {"path": "../../../1.wav"}, "path outside the audio folder"),
        (CHOICE | {"dataset_name": "/../../.."}, "path outside the audio folder"),
        (CHOICE | {"task_name": "Speaker_Emotion_Recognition"}, "field missing or malformed"),
        (CHOICE | {"choice_c": None}, "field missing or malformed"),  # D would be read as C
        (CHOICE | {"choice_c": ["angry"]}, "field missing or malformed"),
        *((without(CHOICE, key), "field missing or malformed") for key in CHOICE if key not in ("choice_d",)),
    ],
)
def test_faulty_foundation_rows(tmp_path, row, reason):
    write_clip(tmp_path / clip_path("Foundation", CHOICE))
    write_clip(tmp_path / clip_path("Foundation", CHOICE | {"task_name": "Speaker_Emotion_Recognition"}))
    rows = [CHOICE | {"uniq_id": 9}, row]
    with pytest.raises(ValueError, match=f"1 of 2 rows cannot be used: {reason} in 1 "):
        foundation(tmp_path, *rows)
    loaded = foundation(tmp_path, *rows, on_error="skip")
    assert [question.id for question in loaded.questions] == ["9"]
    assert loaded.left_out == {reason: [str(row.get("uniq_id", "row 2"))]}


@pytest.mark.parametrize("key", list(OPEN))
def test_faulty_chat_rows(tmp_path, key):
    write_clip(tmp_path / clip_path("Chat", OPEN))
    rows = [OPEN | {"uniq_id": 9}, without(OPEN, key)]
    with pytest.raises(ValueError, match=f"field missing or malformed in 1 .*no '{key}'"):
        chat(tmp_path, *rows)
    assert len(chat(tmp_path, *rows, on_error="skip").questions) == 1


def test_two_rows_with_one_id(tmp_path):
    write_clip(tmp_path / clip_path("Chat", OPEN))
    with pytest.raises(ValueError, match=r"id already used in 1 \[row 2 \(0\)"):
        chat(tmp_path, OPEN, OPEN | {"question": "And then?"})


def test_the_metadata_of_the_other_track_are_refused(tmp_path):
    write_clip(tmp_path / clip_path("Chat", OPEN))
    with pytest.raises(ValueError, match="'speech_and_sound_QA' is none of Foundation's"):
        foundation(tmp_path, OPEN)


def test_breakdowns_are_groups_of_the_questions(tmp_path):
    write_clip(tmp_path / clip_path("Foundation", CHOICE))
    write_clip(tmp_path / clip_path("Chat", OPEN))
    assert set(BENCHMARKS["air-bench-foundation"].breakdowns) <= set(foundation(tmp_path, CHOICE).questions[0].groups)
    assert set(BENCHMARKS["air-bench-chat"].breakdowns) <= set(chat(tmp_path, OPEN).questions[0].groups)
