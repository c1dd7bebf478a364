"""Which audio file belongs to a row of Open-ASQA."""

import pytest

from falcon3_audio.training.prepare.open_asqa_files import find_audio


@pytest.mark.parametrize(
    "files, dataset, audio_id, found",
    [
        (["a/x.wav"], "as_2m", "/data/sls/audio/x.wav", "a/x.wav"),
        (["a/x.wav"], "as_2m", "/data/sls/audio/x.flac", "a/x.wav"),  # another suffix
        (["a/x.wav"], "fsd50k", "/data/sls/audio/x.wav", None),  # no root for it
        (["a/x.wav"], "AS_2m", "/data/sls/audio/x.wav", None),
        (["a/x.wav", "a/audio/x.wav"], "as_2m", "/data/sls/audio/x.wav", "a/audio/x.wav"),  # the longest matching end
        (["a/x.flac", "a/audio/x.wav"], "as_2m", "/data/sls/audio/x.flac", "a/x.flac"),  # the exact name first
        (["a/2/1.wav"], "as_2m", "/data/1/1.wav", None),  # another folder's file
        (["b/x.wav"], "as_2m", "/data/x.wav", "b/x.wav"),  # the second folder
        (["a/x.wav", "b/x.wav"], "as_2m", "/data/x.wav", "a/x.wav"),
        (["a/x.wav"], "as_2m", "../../audio/x.wav", "a/x.wav"),  # as in LTU's toy set
        (["a/clip.flac"], "as_2m", "/data/clip.0001", None),  # .0001 is not an audio suffix
        (["a/clip.0001.flac"], "as_2m", "/data/clip.0001", "a/clip.0001.flac"),
        (["home/train/x.wav"], "world", "train/x.wav", "home/train/x.wav"),  # relative to the JSON
        (["home/x.wav"], "world", "train/x.wav", None),
        (["a/x.wav/y"], "as_2m", "/data/x.wav", None),  # a folder is not a file
        ([], "as_2m", "/", None),
        ([], "as_2m", "x\0.wav", None),
    ],
)
def test_finding_audio(tmp_path, files, dataset, audio_id, found):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    roots = [("as_*", str(tmp_path / "a")), ("as_2?", str(tmp_path / "b"))]
    path = find_audio(dataset, audio_id, roots, str(tmp_path / "home"))
    assert path == (None if found is None else str(tmp_path / found))


def test_an_absolute_path_of_this_machine(tmp_path):
    (tmp_path / "x.wav").touch()
    assert find_audio("mine", str(tmp_path / "x.wav"), [], "/elsewhere") == str(tmp_path / "x.wav")
