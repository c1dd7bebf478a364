"""CSV and TSV as text: their fields, and errors that name the line."""

import pytest

from falcon3_audio.training.data import tables
from falcon3_audio.training.data.tables import read_table


@pytest.fixture
def rows(tmp_path):
    """The rows of a table with this text."""

    def rows(text, delimiter=",", encoding="utf-8"):
        path = tmp_path / "table"
        path.write_bytes(text.encode(encoding))
        return list(read_table(path, delimiter))

    return rows


def test_every_field_is_a_text_and_has_its_line(rows):
    assert rows("a,b\n0,NA\n\nnull,007\n") == [
        ("line 2", {"a": "0", "b": "NA"}),
        ("line 4", {"a": "null", "b": "007"}),
    ]
    assert rows("\ufeffa,b\r\n1,\r\n") == [("line 2", {"a": "1", "b": ""})]
    assert rows('a,"b"\n"x, ""y""\nz", 1 \n') == [("line 3", {"a": 'x, "y"\nz', "b": " 1 "})]
    assert rows("") == [] and rows("a,b\n") == []


def test_an_index_without_a_name_is_left_out(rows):
    assert rows(",a\n0,x\n") == [("line 2", {"a": "x"})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As pandas and spreadsheets write it.
        ('a\tb\n"x ""y"""\t1\n"two\nlines"\t2\n', ['x "y"', "two\nlines"]),
        # As Common Voice writes it.
        ('a\tb\n"Yes," he said.\t1\nan "x"\t2\n"Hm."\t3\n', ['"Yes," he said.', 'an "x"', '"Hm."']),
        ('a\tb\n"Open\t1\nshut"\t2\n', ['"Open', 'shut"']),
    ],
)
def test_quotes_in_tables_with_tabs(rows, text, expected):
    assert [row["a"] for _, row in rows(text, "\t")] == expected


@pytest.mark.parametrize(
    ("text", "delimiter", "message"),
    [
        ("a,b\nx\n", ",", "table, line 2: expected 2 fields, one for each column, got 1"),
        ("a,b\nx,y,z\n", ",", "table, line 2: expected 2 fields, one for each column, got 3"),
        ('a,b\n"x" y,z\n', ",", "table, line 2: ',' expected after '\"'"),
        ('a,b\n"x,y\n', ",", "table, line 2: unexpected end of data"),
        ("a,b,a\nx,y,z\n", ",", "table, line 1: the columns a appear twice"),
        ("a;b\nx;y\n", ",", "table, line 1: its columns are separated by a semicolon; expected a comma"),
        ("a,b\nx,y\n", "\t", "table, line 1: its columns are separated by a comma; expected a tab"),
        *(
            (
                text,
                ",",
                "table, line 1: its columns are separated by a vertical bar; expected a comma .* in its first line",
            )
            for text in ("audio|text\na.wav|a, b\n", "LJ1|a dog|a dog\n", "LJ1|One, two|One, two\nLJ2|a|a\n")
        ),
        *(
            (f"{name},a,a\nb.wav,b,b\n", ",", f"table, line 1: the first line must name .* file name '{name}'. Add a")
            for name in ("a.wav", "c/d.MP3", "e.flac")
        ),
        ("a\tb\nx\n", "\t", "table, line 2: expected 2 fields"),
    ],
)
def test_what_is_no_table_is_named(rows, text, delimiter, message):
    with pytest.raises(ValueError, match=message):
        rows(text, delimiter)


def test_other_encodings_are_named(rows):
    with pytest.raises(ValueError, match="table, line 2: this is not UTF-8. Save the file as UTF-8"):
        rows("a,b\n\u00fc,y\n", encoding="latin-1")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        for text in ("a,b\nx,y\n", "a,b\n\u00fc\u4e16,y\n"):
            with pytest.raises(ValueError, match="line [12]: this is UTF-16, not UTF-8. .*: iconv -f UTF-16 -t UTF-8"):
                rows(text, encoding=encoding)


class Counted:
    """Lines that count how many were read."""

    def __init__(self, lines):
        self.lines, self.read = iter(lines), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        return self

    def __next__(self):
        line = next(self.lines)
        self.read += 1
        return line


@pytest.mark.parametrize("quoted", [True, False])
def test_a_table_with_tabs_is_read_once_and_not_far_ahead(monkeypatch, quoted):
    """As streams need it: no lines are read ahead before the first quote, and some after it."""
    monkeypatch.setattr(tables, "LOOKED_AT", 5)
    said = '"a ""b"" c"' if quoted else '"a" b c'
    fields = ["plain"] * 10 + ['"Hm."', "plain", said, *["plain"] * 85]
    lines = Counted(["text\tid\n", *(f"{field}\t{number}\n" for number, field in enumerate(fields))])
    opened = []
    monkeypatch.setattr(tables, "open_file", lambda *_, **__: opened.append(1) or lines)
    rows = read_table("far.tsv", "\t")
    assert next(rows) == ("line 2", {"text": "plain", "id": "0"}) and lines.read == 2
    texts = ["plain", *(next(rows)[1]["text"] for _ in range(10))]
    assert texts[-1] == ("Hm." if quoted else '"Hm."') and lines.read == 16
    texts += [row["text"] for _, row in rows]
    assert texts[12] == ('a "b" c' if quoted else '"a" b c') and len(texts) == 98 and opened == [1]


def test_a_row_may_go_on_behind_what_is_looked_at(rows, monkeypatch):
    monkeypatch.setattr(tables, "LOOKED_AT", 3)
    table = rows('a\tb\n"x"\t1\ny\t2\nz\t"two\nlines"\n', "\t")
    assert [tuple(row.values()) for _, row in table] == [("x", "1"), ("y", "2"), ("z", "two\nlines")]
