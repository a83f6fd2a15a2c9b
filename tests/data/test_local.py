"""Files of a user's own, and everything that can be wrong with one."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data import Example, LocalFile, local
from fedpeft.errors import DataError

ROWS = [
    {"text": "first, with a comma", "label": "b", "group": "north"},
    {"text": 'second\n"quoted"', "label": "a", "group": "south"},
    {"text": "dritte Zeile, größer", "label": "b", "group": "south"},
]
FORMS = {
    "rows.json": json.dumps(ROWS),
    "columns.json": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    "rows.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
    "ROWS.NDJSON": "\r\n".join(json.dumps(row) for row in ROWS),
    "rows.csv": 'text,label,group\n"first, with a comma",b,north\n"second\n""quoted""",a,south\n\n'
    '"dritte Zeile, größer",b,south\n',
    "rows.tsv": 'text\tlabel\tgroup\nfirst, with a comma\tb\tnorth\n"second\n""quoted"""\ta\tsouth\n'
    "dritte Zeile, größer\tb\tsouth\n",
}


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_all_forms_hold_the_same_examples(tmp_path, name, mark):
    path = write(tmp_path, name, mark + FORMS[name].encode())
    corpus = LocalFile(path, label="label", group="group", test_fraction=0).load(0)
    assert corpus.labels == ("a", "b") and corpus.test == ()
    assert corpus.train == tuple(Example(r["text"], "ab".index(r["label"]), None, r["group"]) for r in ROWS)


def test_prompts_and_completions(tmp_path):
    path = write(tmp_path, "chat.jsonl", '{"question": "1 + 1?", "answer": "2"}\n{"question": "", "answer": "x"}')
    corpus = LocalFile(path, text="answer", prompt="question", test_fraction=0).load(0)
    assert corpus.train == (Example("2", prompt="1 + 1?"), Example("x", prompt="")) and corpus.labels == ()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9"], ("9", "10")),
        (["x", "10", "9"], ("10", "9", "x")),
        ([True, False], ("False", "True")),
    ],
)
def test_labels_are_sorted_as_what_they_are(tmp_path, labels, names):
    path = write(tmp_path, "a.json", json.dumps([{"text": "a", "label": label} for label in labels]))
    corpus = LocalFile(path, label="label", test_fraction=0).load(0)
    assert corpus.labels == names
    assert [names[e.label] for e in corpus.train] == [str(label) for label in labels]


def test_a_test_file_has_the_labels_of_the_training_file(tmp_path):
    train = write(tmp_path, "train.csv", "text,label\na,yes\nb,no\n")
    test = write(tmp_path, "test.jsonl", '{"text": "c", "label": "yes"}')
    corpus = LocalFile(train, label="label", test_path=test).load(0)
    assert len(corpus.train) == 2 and corpus.test == (Example("c", 1),)
    wrong = write(tmp_path, "wrong.csv", "text,label\nc,yes\nd,yess\n")
    with pytest.raises(DataError, match=r"wrong\.csv, line 3, column 'label': label 'yess' is not one.*mean 'yes'\?"):
        LocalFile(train, label="label", test_path=wrong).load(0)


MALFORMED = [
    ("a.jsonl", '{"text": "a"}\n\n{"text": \n', r"a\.jsonl, line 3: not valid JSON: Expecting value"),
    ("a.jsonl", '{"text": "a"}\n["b"]', r"line 2: expected an object, got list"),
    (
        "a.jsonl",
        '{"text": "a"}\n{"txet": "b"}',
        r"line 2: no column 'text'; there are 'txet'; did you mean 'txet'\?",
    ),
    ("a.jsonl", '{"text": "a"}\n{}', r"line 2: no column 'text'; there are none"),
    ("a.jsonl", '{"text": 3}', r"line 1, column 'text': expected text, got 3"),
    ("a.jsonl", '{"text": null}', r"line 1, column 'text': expected text, got None"),
    ("a.jsonl", '{"text": "  "}', r"line 1, column 'text': expected text, got '  '"),
    ("a.jsonl", '{"text": ["' + 90 * "x" + '"]}', r"expected text, got \['x{50,55}\.\.\."),
    ("a.jsonl", "", r"a\.jsonl: expected at least one row, got none"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"line 2: expected UTF-8, got byte 0xff at position 10"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), r"line 1: expected UTF-8, got byte 0xff at position 0"),
    ("a.jsonl", "[" * 100_000, r"line 1: JSON out of bounds"),
    ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"line 1: JSON out of bounds"),
    ("a.json", "{", r"a\.json: not valid JSON"),
    ("a.json", "3", r"a\.json: expected a list of objects or an object of columns, got int"),
    ("a.json", "[]", r"a\.json: expected at least one row, got none"),
    ("a.json", '[{"text": "a"}, 3]', r"a\.json, row 2: expected an object, got int"),
    ("a.json", '{"text": {"0": "a"}}', r"a\.json, column 'text': expected a list, got dict"),
    (
        "a.json",
        '{"text": ["a"], "label": []}',
        r"expected columns of one length, got \{'text': 1, 'label': 0\}",
    ),
    ("a.csv", "", r"a\.csv: expected at least one row, got none"),
    ("a.csv", "text,label\n", r"a\.csv: expected at least one row, got none"),
    ("a.csv", "text,label\na,b\nc\n", r"a\.csv, line 3: expected 2 cells as in the header, got 1"),
    ("a.csv", "text,label\na,b,c\n", r"a\.csv, line 2: expected 2 cells as in the header, got 3"),
    ("a.csv", "text,text\na,b\n", r"a\.csv, line 1: expected a header of distinct names"),
    ("a.csv", 'text,label\n"a,b\n', r"a\.csv, line 2: not valid csv: unexpected end of data"),
    ("a.csv", "text;label\na;b\n", r"line 2: no column 'text'; there are 'text;label'"),
    ("a.tsv", b"text\nok\n\xe9t\xe9\n", r"a\.tsv, line 3: expected UTF-8, got byte 0xe9 at position 0"),
]


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED)
def test_a_malformed_file_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        LocalFile(write(tmp_path, name, content)).load(0)


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"label": 0.5}, {"label": "label"}, "column 'label': expected a string or an integer, got 0.5"),
        ({"label": None}, {"label": "label"}, "column 'label': expected a string or an integer, got None"),
        ({"label": ""}, {"label": "label"}, "column 'label': expected a string or an integer, got ''"),
        (
            {"label": "a"},
            {"label": "lable"},
            "no column 'lable'; there are 'text', 'label'; did you mean 'label'",
        ),
        ({"prompt": None}, {"prompt": "prompt"}, "column 'prompt': expected text, got None"),
        ({"group": []}, {"group": "group"}, r"column 'group': expected a string or an integer, got \[\]"),
    ],
)
def test_a_cell_of_the_wrong_kind_is_named(tmp_path, row, columns, message):
    path = write(tmp_path, "a.json", json.dumps([{"text": "x", **row}]))
    with pytest.raises(DataError, match=r"a\.json, row 1.*" + message):
        LocalFile(path, **columns).load(0)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        LocalFile(str(tmp_path / "none.csv")).load(0)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl: cannot be read"):
        LocalFile(str(tmp_path / "folder.jsonl")).load(0)


@pytest.mark.parametrize("name", FORMS)
@given(
    cut=st.integers(0, 120),
    put=st.binary(max_size=4) | st.sampled_from([b"[", b'"', b"\n", b",", b"\x00", b"NaN"]),
)
def test_whatever_a_file_holds_only_a_data_error_comes_out(tmp_path_factory, name, cut, put):
    content = FORMS[name].encode()
    path = write(tmp_path_factory.getbasetemp(), name, content[:cut] + put + content[cut + len(put) :])
    truncated = write(tmp_path_factory.getbasetemp(), "cut_" + name, content[:cut] + put)
    for file in (path, truncated):
        with suppress(DataError):
            LocalFile(file, label="label", group="group", test_fraction=0.5).load(0)


def test_a_json_file_too_large_to_read_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_MOST_JSON_BYTES", 10)
    with pytest.raises(DataError, match=r"a\.json: .*at most 10 bytes, got 15; use JSONL"):
        LocalFile(write(tmp_path, "a.json", '[{"text": "a"}]')).load(0)
