"""The set of real recordings as a whole, made of stand-in packages: what is written, resumed, missing, and held out.

apt-get is a script that copies from a folder of stand-in .deb files (tiny_debs.py); kills are real.
"""

import hashlib
import json
import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from threading import Thread

import pytest
import soundfile
from child import in_child
from tiny_debs import install_apt, make_mirror

from falcon3_audio.evaluation.load_mmau import load_mmau
from falcon3_audio.training.data.shards import begin_set
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio.training.prepare.real_sounds import build, packages, writing
from falcon3_audio.training.prepare.real_sounds.build import TRAINING_FILES, Wanted, main, make_real_sounds
from falcon3_audio.training.prepare.real_sounds.tables import are_alike, read_packages
from falcon3_audio_cli import main as cli


pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")

WANTED = Wanted(test_questions=24, validation_questions=24, composites=10, phrases=52)
README = Path(__file__).resolve().parents[2] / "training" / "prepare" / "README.md"


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    return folder, make_mirror(folder)


@pytest.fixture(scope="module")
def asked(mirror, tmp_path_factory, monkeymodule):
    """The names that apt-get was asked for. The sets are small."""
    monkeymodule.setattr(build, "LEAST_COMPOSITES", 8)
    return install_apt(tmp_path_factory.mktemp("bin"), mirror[0], monkeymodule)


@pytest.fixture(scope="module")
def made(mirror, asked, tmp_path_factory):
    """A set, its report and its packages."""
    out = tmp_path_factory.mktemp("set")
    report = make_real_sounds(out, wanted=WANTED, packages=mirror[1])
    return out, report


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def training_rows(out):
    """A list for each domain."""
    return {domain: lines(out / name) for domain, name in TRAINING_FILES.items()}


def digests(out):
    """Of all files except the package cache."""
    files = [
        path for path in sorted(out.rglob("*")) if path.is_file() and "packages" not in path.relative_to(out).parts
    ]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_written(made):
    out, report = made
    assert {path.name for path in out.iterdir()} == {
        *(
            *TRAINING_FILES.values(),
            "validation.json",
            "test.json",
            "clips.jsonl",
            "sources.json",
            "report.json",
            "set.lock",
            "audio",
            "packages",
        )
    }
    clips = {row["path"]: row for row in lines(out / "clips.jsonl")}
    assert set(clips) == {str(path.relative_to(out)) for path in (out / "audio").rglob("*") if path.is_file()}
    licences = {package.name: package.licence for package in read_packages()}
    for path, clip in clips.items():
        assert clip["seconds"] == pytest.approx(soundfile.info(out / path).duration, abs=1e-3)
        assert clip["split"] == path.split("/")[1] and clip["licence"]
        if clip["source"] != "composite":
            assert clip["licence"] == licences[clip["source"]]
        else:
            assert set(clip["licence"].split(" and ")) == {clips[part]["licence"] for part in clip["made_of"]}
    assert {clip["domain"] for clip in clips.values()} == {"speech", "sound", "music"}
    assert report["finished"] and json.loads((out / "report.json").read_text()) == report


def test_the_summary_counts_what_is_there(made):
    out, report = made
    clips, train = lines(out / "clips.jsonl"), training_rows(out)
    domains = {clip["path"]: clip["domain"] for clip in clips}
    assert all({domains[row["audio"]] for row in rows} == {domain} for domain, rows in train.items())
    for split in ("train", "validation", "test"):
        for domain, counts in report["splits"][split].items():
            own = [clip for clip in clips if (clip["split"], clip["domain"]) == (split, domain)]
            assert counts["clips"] == len(own) > 0
            assert counts["hours"] == pytest.approx(sum(clip["seconds"] for clip in own) / 3600, abs=1e-3)
            if split == "train":
                assert counts["questions"] == sum(len(row["questions"]) for row in train[domain])
            else:
                asked = json.loads((out / f"{split}.json").read_text())
                assert counts["questions"] == sum(row["task"] == domain for row in asked) > 0
    sources = json.loads((out / "sources.json").read_text())
    assert Counter(clip["source"] for clip in clips if clip["source"] != "composite") == Counter(
        {row["package"]: row["clips"] for row in sources if row["clips"]}
    )
    assert report["splits"]["test"]["speech"]["questions"] == 24
    assert len(report["packages"]) == len(sources) and report["missing"] == {}


def test_training_and_evaluation_read_it(made, processor):
    out, _ = made
    data, sizes = load_training_data([DataSource(str(out / name)) for name in TRAINING_FILES.values()])
    assert sizes == [sum(len(row["questions"]) for row in rows) for rows in training_rows(out).values()]
    assert len(data) == sum(sizes)
    for name in ("test", "validation"):
        asked = load_mmau(out / f"{name}.json")
        assert len(asked.questions) == len(json.loads((out / f"{name}.json").read_text()))
        assert all(question.audio[0].read() for question in asked.questions)


def test_splits_share_nothing(made):
    """No file, no recording within a composite, and no voice except those split by level, key or root."""
    out, _ = made
    clips = {row["path"]: row for row in lines(out / "clips.jsonl")}
    split_of_digest, split_of_voice = {}, {}
    for path, clip in clips.items():
        digest = hashlib.sha256((out / path).read_bytes()).hexdigest()
        assert split_of_digest.setdefault(digest, clip["split"]) == clip["split"]
        assert all(clips[part]["split"] == clip["split"] for part in clip.get("made_of", ()))
        if clip["domain"] == "speech" and clip["source"] not in ("composite", "fillets-ng-data-cs"):
            assert split_of_voice.setdefault(clip["voice"], clip["split"]) == clip["split"]
    assert set(split_of_voice.values()) == {"train", "validation", "test"}
    files = dict.fromkeys(TRAINING_FILES.values(), "train") | {"validation.json": "validation", "test.json": "test"}
    for name, split in files.items():
        used = re.findall(r"audio/(\w+)/", (out / name).read_text())
        assert set(used) == {split}
    levels = {re.search(r"(level\d)", path)[1]: clip["split"] for path, clip in clips.items() if "level" in path}
    assert levels["level0"] == "test" and levels["level4"] == "validation"
    assert {levels[f"level{number}"] for number in (1, 2, 3, 5)} == {"train"}


@pytest.mark.parametrize("name", ["test", "validation"])
def test_held_out_questions_are_fair(made, name):
    rows = json.loads((made[0] / f"{name}.json").read_text())
    places = Counter(row["choices"].index(row["answer"]) for row in rows)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) - min(places.values()) <= 3  # one for each domain
    assert max(Counter(row["audio_id"] for row in rows).values()) <= 2
    assert len({row["id"] for row in rows}) == len(rows) and {row["split"] for row in rows} == {name}
    for row in rows:
        options = row["choices"]
        assert len(options) == len(set(options)) == 4
        assert not any(are_alike(one, other) for one in options for other in options if one != other), row


def test_training_questions_are_fair(made):
    places: Counter[int] = Counter()
    for row in chain(*training_rows(made[0]).values()):
        assert 1 <= len(row["questions"]) <= 7
        for question in row["questions"]:
            _, closed, options = question["instruction"].partition(" Choose one: ")
            texts, answer = options[:-1].split(", "), question["output"]
            if closed and len(texts) == 4:  # some options contain a comma
                assert len(set(texts)) == 4 and answer in texts
                assert not any(are_alike(one, other) for one in texts for other in texts if one != other)
                places[texts.index(answer)] += 1
    assert sum(places.values()) > 300
    assert max(places.values()) < 1.25 * min(places.values())


def test_names_that_are_asked_were_trained(made):
    out, _ = made
    trained = Counter(q["output"] for row in chain(*training_rows(out).values()) for q in row["questions"])
    for name in ("validation", "test"):
        for row in json.loads((out / f"{name}.json").read_text()):
            if row["sub-category"] in ("Sound", "Instrument", "Language"):
                assert trained[row["answer"]], row


def test_validation_takes_its_clips_from_training_and_changes_nothing_else(made, mirror, asked, tmp_path):
    out, _ = made
    plain = tmp_path / "plain"
    make_real_sounds(plain, out / "packages", replace(WANTED, validation_questions=0), mirror[1])
    assert not (plain / "validation.json").exists()
    assert (plain / "test.json").read_bytes() == (out / "test.json").read_bytes()
    all_rows, rows = [], []
    for name in TRAINING_FILES.values():
        all_of_it, left = ((folder / name).read_text().splitlines() for folder in (plain, out))
        remaining = iter(all_of_it)
        assert len(left) < len(all_of_it) and all(row in remaining for row in left)  # in order, byte for byte
        all_rows, rows = all_rows + all_of_it, rows + left
    validated = {path.name for path in (out / "audio" / "validation").rglob("*") if path.is_file()}
    gone = [json.loads(row)["audio"] for row in set(all_rows) - set(rows)]
    own = {row["path"]: row for row in lines(plain / "clips.jsonl")}
    for path in gone:
        parts = own[path].get("made_of", [path])
        assert any(Path(part).name in validated for part in parts), path


def test_two_sets_are_the_same_wherever_they_are(made, mirror, asked, tmp_path):
    out, _ = made
    elsewhere = tmp_path / "another" / "place"
    make_real_sounds(elsewhere, tmp_path / "cache", WANTED, mirror[1])
    assert digests(elsewhere) == digests(out)


def test_another_seed_and_the_same_folder(made, mirror, asked, tmp_path):
    out, _ = made
    again = tmp_path / "set"
    make_real_sounds(again, out / "packages", replace(WANTED, seed=1, composites=20), mirror[1])
    for name in TRAINING_FILES.values():
        assert (again / name).read_bytes() != (out / name).read_bytes()
    make_real_sounds(again, out / "packages", WANTED, mirror[1])
    assert digests(again) == digests(out)  # nothing of the larger set is left


@pytest.mark.parametrize("change", ["seed", "packages"])
def test_a_set_that_is_made_anew_has_no_questions_about_old_clips(made, mirror, asked, tmp_path, monkeypatch, change):
    """Composites of both sets have the same names; the run stops while they are written."""
    out, known = tmp_path / "set", mirror[1]
    shutil.copytree(made[0], out, ignore=shutil.ignore_patterns("packages"))
    wanted = replace(WANTED, seed=1) if change == "seed" else WANTED
    fewer = known if change == "seed" else [p for p in known if p.name != "bucklespring-data"]

    def killed(*given, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "Composer", killed)
        make_real_sounds(out, made[0] / "packages", wanted, fewer)
    assert not json.loads((out / "report.json").read_text())["finished"]
    assert {path.name for path in out.iterdir()} == {"audio", "report.json", "set.lock", "sources.json"}
    if change == "packages":
        make_real_sounds(out, made[0] / "packages", WANTED, known)
        assert digests(out) == digests(made[0])


def test_a_finished_set_keeps_its_questions_while_it_is_checked(made, mirror, asked, tmp_path, monkeypatch):
    def killed(*given, **options):
        raise KeyboardInterrupt

    out, before = tmp_path / "set", digests(made[0])
    shutil.copytree(made[0], out, ignore=shutil.ignore_patterns("packages"))
    with open(next((out / "audio").rglob("*.wav")), "ab") as file:
        file.write(b"damaged")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "Composer", killed)
        make_real_sounds(out, made[0] / "packages", WANTED, mirror[1])
    assert (out / "test.json").read_bytes() == (made[0] / "test.json").read_bytes()
    make_real_sounds(out, made[0] / "packages", WANTED, mirror[1])
    assert digests(out) == before


def test_a_finished_set_is_left_alone(made, mirror, asked, tmp_path, monkeypatch):
    out, _ = made
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_clips", None)  # not called
        assert make_real_sounds(out, wanted=WANTED, packages=mirror[1]) == json.loads(
            (out / "report.json").read_text()
        )


def test_a_file_of_a_finished_set_that_is_gone_is_written_again(made, mirror, asked, tmp_path):
    out, before = tmp_path / "set", digests(made[0])
    shutil.copytree(made[0], out, ignore=shutil.ignore_patterns("packages"))
    (out / "test.json").unlink()
    make_real_sounds(out, made[0] / "packages", WANTED, mirror[1])
    assert digests(out) == before


def die_at(monkeypatch, module, name, number):
    """Kill the process at the given call of a function."""
    function, calls = getattr(module, name), count(1)

    def dying(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, dying)


@pytest.mark.parametrize(
    "module, name, number",
    [
        (packages, "_check", 3),
        (packages, "unpack_archives", 4),
        (writing.os, "replace", 150),
        (build, "write_json", 2),
    ],
    ids=["fetching", "unpacking", "copying", "at the end"],
)
def test_killed_and_started_again(made, mirror, asked, tmp_path, monkeypatch, module, name, number):
    out, cache = tmp_path / "set", tmp_path / "cache"
    asked.write_text("")

    def run():
        die_at(monkeypatch, module, name, number)
        make_real_sounds(out, cache, WANTED, mirror[1])

    assert in_child(run) == -signal.SIGKILL
    assert not (out / "report.json").exists() or not json.loads((out / "report.json").read_text())["finished"]
    make_real_sounds(out, cache, WANTED, mirror[1])
    assert digests(out) == digests(made[0])
    assert not list(tmp_path.rglob("*.tmp"))
    times = Counter(asked.read_text().split())
    assert sum(times.values()) - len(times) <= 1  # at most the interrupted download is repeated


def test_packages_that_are_missing_are_named(made, mirror, asked, tmp_path, monkeypatch, capsys):
    folder, known = mirror
    gone = tmp_path / "mirror"
    shutil.copytree(folder, gone, ignore=shutil.ignore_patterns("tree-*"))
    (stem,) = (package.stem for package in known if package.name == "fillets-ng-data")
    (gone / f"{stem}.deb").unlink()
    with open(next(gone.glob("widelands-data*.deb")), "ab") as file:
        file.write(b"another build")
    install_apt(tmp_path / "bin", gone, monkeypatch)
    monkeypatch.setattr(build, "read_packages", lambda: known)
    options = ["--test-questions", "24", "--validation-questions", "24", "--composites", "10", "--phrases", "52"]
    assert main([str(tmp_path / "set"), *options]) == 0
    said = capsys.readouterr().out
    assert f"{len(known) - 3} packages used, 3 missing" in said
    assert "fillets-ng-data: apt-get: Version '1.0.1-1.1' for 'fillets-ng-data' was not found" in said
    assert "fillets-ng-data-cs: it needs fillets-ng-data, which is missing" in said
    assert re.search(r"widelands-data: widelands-data_\S+ has SHA-256 \w{64}, expected \w{64}", said)
    sources = {row["package"]: row for row in json.loads((tmp_path / "set" / "sources.json").read_text())}
    assert sources["fillets-ng-data-cs"]["missing"] and not sources["fillets-ng-data-cs"]["clips"]
    assert sources["hedgewars-data"]["missing"] is None and sources["hedgewars-data"]["clips"]
    # Packages that appear later are added, and the set is as if they had always been there.
    install_apt(tmp_path / "bin", folder, monkeypatch)
    assert main([str(tmp_path / "set"), *options]) == 0
    assert digests(tmp_path / "set") == digests(made[0])


def test_a_damaged_file_in_the_cache(mirror, asked, tmp_path):
    known = [package for package in mirror[1] if package.name in ("bucklespring-data", "pocketsphinx-testdata")]
    (keys,) = (package for package in known if package.name == "bucklespring-data")
    damaged = tmp_path / f"{keys.stem}.deb"
    damaged.write_bytes(b"half of it")
    found = packages.obtain(known, tmp_path)
    assert found.missing == {
        "bucklespring-data": f"{damaged.name} has SHA-256 {hashlib.sha256(b'half of it').hexdigest()}, "
        f"expected {keys.sha256}; delete it"
    }
    assert list(found.folders) == ["pocketsphinx-testdata"]
    assert (found.folders["pocketsphinx-testdata"] / "usr/share/pocketsphinx/test/data/librivox/one.wav").is_file()


def test_two_runs_share_a_cache(mirror, asked, tmp_path):
    """The second waits for the first, and does not remove the first one's half-unpacked folders."""
    known = [package for package in mirror[1] if package.name == "bucklespring-data"]
    others = tmp_path / ".of-others.tmp"
    half = [tmp_path / f".{known[0].stem}.deb.x1.tmp", tmp_path / "unpacked" / f".{known[0].stem}.x2.tmp"]
    for folder in (others, *half):
        folder.mkdir(parents=True)
    with packages.one_at_a_time(tmp_path):
        second = Thread(target=packages.obtain, args=(known, tmp_path))
        second.start()
        second.join(0.5)
        assert second.is_alive() and all(folder.exists() for folder in half)
    second.join()
    assert list(tmp_path.glob("*.deb")) and others.exists() and not any(folder.exists() for folder in half)


@pytest.mark.parametrize("only", ["asterisk-core-sounds-en-wav", "bucklespring-data", "fluid-soundfont-gm"])
def test_one_package_is_enough(mirror, asked, tmp_path, only):
    known = [package for package in mirror[1] if package.name == only]
    report = make_real_sounds(tmp_path, wanted=WANTED, packages=known)
    assert report["packages"] == [only] and len(list(tmp_path.glob("train_*.jsonl"))) == 1  # all of one domain


def test_what_is_missing_on_the_machine(mirror, asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "read_packages", lambda: mirror[1])
    monkeypatch.setattr(packages.shutil, "which", lambda program: None if program == "apt-get" else program)
    assert main([str(tmp_path / "a")]) == 1
    said = capsys.readouterr().err
    assert "no package is available (apt-get is not installed)" in said and "deb.debian.org" in said
    assert str(tmp_path / "a" / "packages") in said and "delete" not in said
    monkeypatch.setattr(packages.shutil, "which", lambda program: None)
    assert main([str(tmp_path / "b")]) == 1
    assert "dpkg-deb, which unpacks Debian packages, is not installed" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(tmp_path / "c")]) == 1
    assert "pip install --no-deps tinysoundfont" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_a_second_start_is_refused(mirror, asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "read_packages", lambda: mirror[1])
    with begin_set(tmp_path, {}):
        (tmp_path / "audio").mkdir()
        (tmp_path / "audio" / "half.wav.7.tmp").touch()
        assert main([str(tmp_path)]) == 1
    assert f"another process is preparing the set in {tmp_path}; wait until" in capsys.readouterr().err
    assert (tmp_path / "audio" / "half.wav.7.tmp").exists()


def test_a_folder_that_holds_something_else(mirror, asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "read_packages", lambda: mirror[1])
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").write_bytes(b"mine")
    assert main([str(tmp_path)]) == 1
    assert "pass an empty folder" in capsys.readouterr().err and (tmp_path / "audio" / "mine.wav").exists()


def test_arguments(tmp_path, capsys):
    assert main([str(tmp_path), "--seed", "-1"]) == 1
    assert "got seed=-1; expected 0 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    assert "give the folder OUT" in capsys.readouterr().err


def test_the_list_of_sources_is_in_the_readme(capsys):
    assert cli(["real-sounds", "--sources"]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 2 + len(read_packages()) == 33
    assert table in README.read_text()
