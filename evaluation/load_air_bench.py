"""AIR-Bench (github.com/OFA-Sys/AIR-Bench) as published: Foundation (single-choice) and Chat (open questions).

The clip of a row is `{root}/Foundation/{task_name}_{dataset_name}/{path}`, or the same under `Chat`; clips of the task
Audio_Grounding are .flac files, though the metadata say .wav. Misspelt task names of the data are kept, in folders and
in scores. Published averages: Foundation over its 19 tasks; Chat over speech, sound, music and mixed audio, which is
the mean of `speech_and_sound` and `speech_and_music`.
Run: `load_foundation("AIR-Bench/Foundation/Foundation_meta.json")`
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .load_checks import (
    FIELD,
    OnError,
    RowFault,
    answer_among,
    clip_of,
    collect,
    id_of,
    lettered_choices,
    read_rows,
    text_of,
)
from .questions import Clip, Question, QuestionSet


# The domain of each task.
FOUNDATION = {
    "Speech_Grounding": "speech",
    "Spoken_Language_Identification": "speech",
    "Speaker_Gender_Recognition": "speech",
    "Speaker_Emotion_Recontion": "speech",
    "Speaker_Age_Prediction": "speech",
    "Speech_Entity_Reconition": "speech",
    "Speaker_Intent_Classification": "speech",
    "Speaker_Number_Verification": "speech",
    "Synthesized_Voice_Detection": "speech",
    "Audio_Grounding": "sound",
    "vocal_sound_classification": "sound",
    "Acoustic_Scene_Classification": "sound",
    "Sound_AQA": "sound",
    "Music_Instruments_Classfication": "music",
    "Music_Genre_Recognition": "music",
    "Music_Midi_Pitch_Analysis": "music",
    "Music_Midi_Velocity_Analysis": "music",
    "Music_AQA": "music",
    "Music_Mood_Recognition": "music",
}
CHAT = {
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "speech_and_sound_QA": "speech_and_sound",
    "speech_and_music_QA": "speech_and_music",
}


def load_foundation(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    The single-choice questions, with two to four options, in the groups `task`, `domain` and `dataset`.

    Args:
        path: `Foundation_meta.json`.
        audio_root: AIR-Bench's root, with `Foundation` in it; by default the clips' folders are next to the metadata.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: a file that cannot be read, or faulty rows, see `load_checks.collect`, including those of a task
            that AIR-Bench does not have.
    """

    def to_question(row: dict[str, Any], clip: Clip, groups: dict[str, str]) -> Question:
        choices = lettered_choices(row)
        answer = answer_among(text_of(row, "answer_gt"), choices)
        return Question(id_of(row, "uniq_id"), (clip,), text_of(row, "question"), choices, answer, groups)

    return _load("air-bench-foundation", Path(path), "Foundation", FOUNDATION, to_question, audio_root, on_error)


def load_chat(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    The open questions, with a reference as the answer and a description of the clip for the judge.

    Arguments, groups and errors are those of `load_foundation`, for `Chat_meta.json` and the folder `Chat`.
    """

    def to_question(row: dict[str, Any], clip: Clip, groups: dict[str, str]) -> Question:
        return Question(
            id=id_of(row, "uniq_id"),
            audio=(clip,),
            question=text_of(row, "question"),
            answer=text_of(row, "answer_gt"),
            groups=groups,
            description=text_of(row, "meta_info"),
        )

    return _load("air-bench-chat", Path(path), "Chat", CHAT, to_question, audio_root, on_error)


def _load(
    benchmark: str,
    path: Path,
    track: str,
    domains: dict[str, str],
    to_question: Callable[[dict[str, Any], Clip, dict[str, str]], Question],
    audio_root: Path | None,
    on_error: OnError,
) -> QuestionSet:
    rows, sha256 = read_rows(path)
    folder = path.parent if audio_root is None else Path(audio_root) / track

    def read(row: dict[str, Any]) -> Question:
        task, dataset, file = (text_of(row, key) for key in ("task_name", "dataset_name", "path"))
        if task not in domains:
            raise RowFault(FIELD, f"the task_name {task!r} is none of {track}'s: {', '.join(domains)}")
        if task == "Audio_Grounding":
            file = file.removesuffix(".wav").removesuffix(".flac") + ".flac"
        # Named with its folder: tasks reuse file names for different clips.
        clip = clip_of(folder, f"{task}_{dataset}/{file}")
        return to_question(row, clip, {"task": task, "domain": domains[task], "dataset": dataset})

    return collect(benchmark, path, rows, read, sha256, on_error)
