"""Archives of recordings, written here in their formats: Quake's pk3, Qt's rcc, OpenTTD's cat."""

import struct

import pytest
from tiny_debs import noise, zipped

from falcon3_audio.training.prepare.real_sounds.archives import read_cat, read_pk3, read_rcc, unpack_archives


def make_rcc(files, compressed=(), version=1):
    """A resource of one folder `a` with the files: names, data and a tree with its nodes in breadth-first order."""
    names, blobs = b"", b""
    entries = {}
    for name in ("a", *files):
        entries[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    stamp = struct.pack(">Q", 0) if version >= 2 else b""
    tree = struct.pack(">IHII", 0, 2, 1, 1) + stamp  # root: its one child is node 1
    tree += struct.pack(">IHII", entries["a"], 2, len(files), 2) + stamp
    for name, data in files.items():
        tree += struct.pack(">IHHHI", entries[name], 1 if name in compressed else 0, 0, 1, len(blobs)) + stamp
        blobs += struct.pack(">I", len(data)) + data
    head = 20
    header = b"qres" + struct.pack(">4I", version, head, head + len(tree), head + len(tree) + len(blobs))
    return header + tree + blobs + names


def make_cat(sounds):
    offset, table, body = 8 * len(sounds), b"", b""
    for title, data in sounds:
        # The first offset has the flag of OpenTTD's newer files.
        at = offset + len(body) | (0x80000000 if not table else 0)
        table += struct.pack("<2I", at, len(data))
        text = title.encode("latin-1") + b"\0"
        body += bytes([len(text)]) + text + data
    return table + body


def test_pk3():
    files = {"sound/a.wav": noise("a"), "models/b.md3": b"no sound", "sound/c.ogg": noise("c")}
    assert dict(read_pk3(zipped(files))) == {name: files[name] for name in ("sound/a.wav", "sound/c.ogg")}


@pytest.mark.parametrize("version", [1, 2])
def test_rcc(version):
    files = {"dög.ogg": noise("dog"), "page.qml": b"no sound", "squeezed.wav": b"zlib", "cat.wav": noise("cat")}
    found = dict(read_rcc(make_rcc(files, compressed={"squeezed.wav"}, version=version)))
    assert found == {"/a/dög.ogg": files["dög.ogg"], "/a/cat.wav": files["cat.wav"]}


def test_cat():
    sounds = [('"Factory Whistle"', noise("whistle")), ("Gone/away", noise("gone")), ("Empty", b"none")]
    found = dict(read_cat(make_cat(sounds)))
    assert found == {"cat/Factory Whistle 00.wav": sounds[0][1], "cat/Gone|away 01.wav": sounds[1][1]}


def test_all_archives_of_a_folder(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "pak0.pk3").write_bytes(zipped({"sound/a.wav": b"first", "sound/b.wav": b"b"}))
    (tmp_path / "share" / "pak1.pk3").write_bytes(zipped({"sound/a.wav": b"second"}))  # as in games, the later wins
    (tmp_path / "share" / "all.rcc").write_bytes(make_rcc({"c.wav": b"c"}))
    target = tmp_path / "unpacked"
    unpack_archives(tmp_path / "share", target)
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"sound/a.wav": b"second", "sound/b.wav": b"b", "a/c.wav": b"c"}


def test_a_name_that_leads_out(tmp_path):
    (tmp_path / "pak0.pk3").write_bytes(zipped({"../../outside.wav": b"bad"}))
    with pytest.raises(ValueError, match="pak0.pk3 holds a file '../../outside.wav', expected no name with"):
        unpack_archives(tmp_path, tmp_path / "unpacked")
    assert not (tmp_path.parent / "outside.wav").exists()
