"""Every way data can be wrong gives one line naming file, row and column, before anything is tokenised."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.errors import DataError
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.formats import LONGEST_LINE

GOOD_JSONL = b"".join(b'{"text": "text %d", "label": "%s"}\n' % (row, b"ab"[row % 2 :][:1]) for row in range(40))
GOOD_CSV = b"text,label\n" + b"".join(b"text %d,%s\n" % (row, b"ab"[row % 2 :][:1]) for row in range(40))


def jsonl(line: bytes) -> bytes:
    """Forty good rows, then this one as row 41."""
    return GOOD_JSONL + line + b"\n"


def table(line: bytes) -> bytes:
    """A header, forty good rows, then this one as row 42."""
    return GOOD_CSV + line + b"\n"


# case -> (content of train, what the message says after the file name)
JSONL = {
    "empty": (b"", ": is empty (0 bytes)"),
    "blank lines only": (b"\n\n  \n", ": holds no rows"),
    "one row": (b'{"text": "a", "label": "a"}\n', ", column 'label': only one class, 'a', in 1 rows"),
    "one class": (GOOD_JSONL.replace(b'"b"', b'"a"'), ", column 'label': only one class, 'a', in 40 rows"),
    "missing column": (
        GOOD_JSONL.replace(b'"label"', b'"Lable"'),
        ", row 1: no column 'label'; columns are 'text', 'Lable' (did you mean 'Lable'?)",
    ),
    "missing in one row": (jsonl(b'{"text": "x"}'), ", row 41: no column 'label'; columns are 'text'"),
    "null label": (jsonl(b'{"text": "x", "label": null}'), ", row 41, column 'label': label is None"),
    "NaN label": (jsonl(b'{"text": "x", "label": NaN}'), ", row 41, column 'label': label is nan"),
    "label nan": (jsonl(b'{"text": "x", "label": "NaN"}'), ", row 41, column 'label': label is 'NaN'"),
    "empty label": (jsonl(b'{"text": "x", "label": " "}'), ", row 41, column 'label': label is ' '"),
    "fraction": (jsonl(b'{"text": "x", "label": 0.5}'), ", row 41, column 'label': label is float 0.5"),
    "list label": (jsonl(b'{"text": "x", "label": ["a"]}'), ", row 41, column 'label': label is list ['a']"),
    "mixed labels": (
        jsonl(b'{"text": "x", "label": 1}'),
        ", row 41, column 'label': label is a number, but a text in row 1",
    ),
    "long label": (
        jsonl(b'{"text": "x", "label": "%s"}' % (b"y" * 300)),
        ", row 41, column 'label': label has 300 characters",
    ),
    "empty text": (jsonl(b'{"text": "  ", "label": "a"}'), ", row 41, column 'text': text is empty"),
    "null text": (jsonl(b'{"text": null, "label": "a"}'), ", row 41, column 'text': text is null"),
    "number as text": (jsonl(b'{"text": 5, "label": "a"}'), ", row 41, column 'text': text is int 5"),
    "NUL in text": (jsonl(b'{"text": "a\\u0000b", "label": "a"}'), ", row 41, column 'text': text holds a NUL"),
    "surrogate": (jsonl(b'{"text": "a\\ud800", "label": "a"}'), ", row 41, column 'text': text holds half a surr"),
    "NUL byte": (jsonl(b'{"text": "a\0b", "label": "a"}'), f", row 41: NUL byte at byte {len(GOOD_JSONL) + 11}"),
    "invalid UTF-8": (
        jsonl(b'{"text": "\xa35", "label": "a"}'),
        f", row 41: invalid UTF-8: 0xa3 at byte {len(GOOD_JSONL) + 10}",
    ),
    "UTF-16": ('{"text": "x", "label": "a"}\n'.encode("utf-16"), ", row 1: is UTF-16; UTF-8 is needed"),
    "50 MB line": (
        GOOD_JSONL + b'{"text": "' + b"x" * 50_000_000 + b'", "label": "a"}\n',
        f", row 41: line longer than {LONGEST_LINE:,} bytes",
    ),
    "not an object": (jsonl(b'"text"'), ", row 41: is str 'text'; a JSON object is needed"),
    "a list of one": (b'[{"text": "x", "label": "a"}]', ", column 'label': only one class, 'a', in 1 rows"),
    "a list cut off": (b'[{"text": "x"},\n{"text": "y"', ", row 2: not JSON: Expecting ',' delimiter at column"),
    "a list of texts": (b'["x",\n"y"]', ", row 1: is str 'x'; a JSON object is needed"),
    "more after a list": (b'[{"text": "x", "label": "a"}]\n{}', ", row 2: '{' after the end of the list"),
    "gzip": (b"\x1f\x8b\x08\0", ": is compressed (gzip); unpack it first"),
    "spreadsheet": (b"PK\x03\x04rest", ": is compressed (zip); unpack it first"),
    "Parquet by another name": (b"PAR1rest", ": is a Parquet file; name it .parquet"),
    "a class for every row": (
        b"".join(b'{"text": "a", "label": "text %d"}\n' % row for row in range(30)),
        ", column 'label': every one of 30 rows has a class of its own; is it really the column of the class?",
    ),
    "not JSON": (jsonl(b"{'text': 1}"), ", row 41: not JSON: Expecting property name"),
    "cut off": (jsonl(b'{"text": "x"'), ", row 41: not JSON: Expecting ',' delimiter"),
    "very deep": (jsonl(b'{"text": ' + b"[" * 200_000), ", row 41: JSON too deep"),
    "very long number": (jsonl(b'{"text": "x", "label": ' + b"9" * 5000 + b"}"), ", row 41: JSON too deep, or a numb"),
    "1,001 classes": (
        b"".join(b'{"text": "text %d", "label": "id %d"}\n' % (row, row) for row in range(2000)),
        ", row 1001, column 'label': more than 1,000 classes; is it really the column of the class?",
    ),
}

CSV = {
    "empty": (b"", ": is empty (0 bytes)"),
    "header only": (b"text,label\n", ": holds only a header and no rows"),
    "blank lines only": (b"\n\n", ": holds no header line"),
    "one class": (GOOD_CSV.replace(b",b\n", b",a\n"), ", column 'label': only one class, 'a', in 40 rows"),
    "missing column": (
        GOOD_CSV.replace(b"label", b"lable", 1),
        ", row 2: no column 'label'; columns are 'text', 'lable' (did you mean 'lable'?)",
    ),
    "no header": (b"nice film,a\nbad film,b\n", ", row 2: no column 'text'; columns are 'nice film', 'a'"),
    "duplicate column": (GOOD_CSV.replace(b"text,label", b"text,text"), ", row 1: column 'text' is there twice"),
    "too few fields": (table(b"x"), ", row 42: 1 field, but the header has 2 columns"),
    "too many fields": (table(b"x,y,a"), ", row 42: 3 fields, but the header has 2 columns"),
    "open quote": (table(b'"x,a'), ", row 42: not CSV: unexpected end of data"),
    "text after quote": (table(b'"x"y,a'), ", row 42: not CSV: "),
    "lines of an old Mac": (
        GOOD_CSV.replace(b"\n", b"\r"),
        ", row 1: not CSV: a carriage return without a line feed; ",
    ),
    "empty label": (table(b"x,"), ", row 42, column 'label': label is ''"),
    "NaN label": (table(b"x,NaN"), ", row 42, column 'label': label is 'NaN'"),
    "null label": (table(b"x,NULL"), ", row 42, column 'label': label is 'NULL'"),
    "empty text": (table(b",a"), ", row 42, column 'text': text is empty"),
    "NUL byte": (table(b"x\0,a"), f", row 42: NUL byte at byte {len(GOOD_CSV) + 1}"),
    "invalid UTF-8": (table(b"x\xff,a"), f", row 42: invalid UTF-8: 0xff at byte {len(GOOD_CSV) + 1}"),
    "50 MB line": (GOOD_CSV + b"x" * 50_000_000 + b",a\n", f", row 42: line longer than {LONGEST_LINE:,} bytes"),
    "50 MB quoted": (
        table(b'"' + (b"x" * 99 + b"\n") * 500_000 + b'",a'),
        ", row 42: not CSV: field larger than field limit",
    ),
    "1,001 classes": (
        b"text,label\n" + b"".join(b"text %d,id %d\n" % (row, row) for row in range(2000)),
        ", row 1002, column 'label': more than 1,000 classes",
    ),
}


def message_of(settings: TaskSettings, cache: Path) -> str:
    """The message of the one DataError that reading this data raises. A tokenizer is not even needed."""
    with pytest.raises(DataError) as caught:
        make_task(settings).prepare(tokenizer=None, cache=cache)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("content", "expected"), JSONL.values(), ids=JSONL)
def test_bad_jsonl(content: bytes, expected: str, settings_for: Callable[..., Any], tmp_path: Path) -> None:
    message = message_of(settings_for("classification", train=content), tmp_path / "cache")
    assert message.startswith(f"{tmp_path}/train.jsonl{expected}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("content", "expected"), CSV.values(), ids=CSV)
def test_bad_csv(content: bytes, expected: str, settings_for: Callable[..., Any], tmp_path: Path) -> None:
    message = message_of(settings_for("classification", train=content, suffix=".csv"), tmp_path / "cache")
    assert message.startswith(f"{tmp_path}/train.csv{expected}")
    assert not (tmp_path / "cache").exists()


UNSEEN = {
    ".jsonl": (GOOD_JSONL, b'{"text": "x", "label": "bb"}\n', 1),
    ".csv": (GOOD_CSV, b"text,label\nx,bb\n", 2),
}


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("suffix", UNSEEN)
def test_class_that_train_has_not(suffix: str, split: str, settings_for: Callable[..., Any], tmp_path: Path) -> None:
    train, other, row = UNSEEN[suffix]
    settings = settings_for("classification", suffix=suffix, train=train, **{split: other})
    expected = (
        f"{split}{suffix}, row {row}, column 'label': class 'bb' of {split} never occurs in train, which has 'a', 'b'"
    )
    assert expected in message_of(settings, tmp_path / "cache")


def test_too_few_rows_for_validation(settings_for: Callable[..., Any], tmp_path: Path) -> None:
    content = b'{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n'
    message = message_of(settings_for("classification", train=content), tmp_path / "cache")
    assert message.startswith(f"{tmp_path}/train.jsonl: 2 rows leave none for validation (cut off: test 0.2, vali")


def _folder(where: Path) -> None:
    (where / "a").mkdir(parents=True)
    (where / "b").mkdir()
    for row in range(20):
        (where / "a" / f"{row}.txt").write_text(f"text a {row}")
        (where / "b" / f"{row}.txt").write_text(f"text b {row}")


# case -> (path in the folder, its bytes or a function that makes it, what the message says after that path)
FOLDERS: dict[str, tuple[str, bytes | Callable[[Path], Any], str]] = {
    "class without files": ("c", Path.mkdir, ": holds no text file"),
    "empty file": ("b/z.txt", b"", ": is empty (0 bytes)"),
    "blank file": ("b/z.txt", b" \n", ", column 'text': text is empty"),
    "invalid UTF-8": ("b/z.txt", b"ab\xa3", ": invalid UTF-8: 0xa3 at byte 2"),
    "UTF-16": ("b/z.txt", "ab".encode("utf-16"), ": is UTF-16; UTF-8 is needed"),
    "NUL byte": ("b/z.txt", b"ab\0", ": NUL byte at byte 2"),
    "50 MB file": ("b/z.txt", b"x" * 50_000_000, f": longer than {LONGEST_LINE:,} bytes"),
    "folder in a class": ("b/z", Path.mkdir, ": is a folder inside the folder of class 'b'"),
    "FIFO": ("b/z", os.mkfifo, ": is a pipe (FIFO); a regular file is needed"),
    "symlink loop": ("b/z", lambda path: path.symlink_to(path.name), ": cannot be read: "),
}


def folder_settings(data: Path) -> TaskSettings:
    source = DataSettings(kind="folder", location=str(data))
    return TaskSettings(type="classification", data=source, metric="accuracy")


@pytest.mark.parametrize(("path", "content", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_bad_file_in_a_text_folder(
    path: str, content: bytes | Callable[[Path], Any], expected: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    _folder(data)
    bad = data / path
    if isinstance(content, bytes):
        bad.write_bytes(content)
    else:
        content(bad)
    assert message_of(folder_settings(data), tmp_path / "cache").startswith(f"{bad}{expected}")


NO_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda data: None, ": no such folder"),
    "no sub-folder": (Path.mkdir, ": has no sub-folder"),
    "a file": (Path.touch, ": is not a folder; a folder with one sub-folder of text files per class is needed"),
    "FIFO": (os.mkfifo, ": is not a folder; a folder with one sub-folder of text files per class is needed"),
    "symlink loop": (lambda data: data.symlink_to(data.name), ": cannot be read: "),
}


@pytest.mark.parametrize(("make", "expected"), NO_FOLDERS.values(), ids=NO_FOLDERS)
def test_bad_text_folder(make: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make(data)
    assert message_of(folder_settings(data), tmp_path / "cache").startswith(f"{data}{expected}")


def test_text_folder_with_one_class(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "1.txt").write_text("x")
    message = message_of(folder_settings(data), tmp_path / "cache")
    assert message.startswith(f"{data}, column 'label': only one class, 'a', in 1 rows")


PATHS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, ": no such file"),
    "near name": (lambda path: path.with_name("trains.jsonl").touch(), ": no such file (did you mean 'trains.jsonl'?)"),
    "folder": (lambda path: path.mkdir(), ": is a folder; a data file is needed"),
    "FIFO": (lambda path: os.mkfifo(path), ": is a pipe (FIFO); a regular file is needed"),
    "device": (lambda path: path.symlink_to("/dev/zero"), ": is a device; a regular file is needed"),
    "symlink loop": (lambda path: path.symlink_to(path.name), ": cannot be read: "),
}


@pytest.mark.parametrize(("make", "expected"), PATHS.values(), ids=PATHS)
def test_bad_path(make: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    make(path)
    data = DataSettings(kind="files", files={"train": str(path)})
    message = message_of(TaskSettings(type="classification", data=data, metric="accuracy"), tmp_path / "cache")
    assert f"{path}" in message
    assert expected in message


FILES = {
    "suffix": (
        {"train": "a.doc"},
        "a.doc: unknown suffix '.doc'; known: .jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet",
    ),
    "no train": ({"test": "a.csv"}, "data.files: no train file; given: test"),
    "split": ({"train": "a.csv", "dev": "b.csv"}, "data.files: unknown split 'dev'; known: train, validation, test"),
}


@pytest.mark.parametrize(("files", "expected"), FILES.values(), ids=FILES)
def test_bad_files(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name in files.values():
        (tmp_path / name).write_text("x")
    data = DataSettings(kind="files", files={split: str(tmp_path / name) for split, name in files.items()})
    assert expected in message_of(TaskSettings(type="classification", data=data, metric="accuracy"), tmp_path)


PARQUET = {
    "not Parquet": (b"PAR1 and nothing else", ": not a readable Parquet file: "),
    "text": (GOOD_JSONL, ": not a readable Parquet file: "),
}


@pytest.mark.parametrize(("content", "expected"), PARQUET.values(), ids=PARQUET)
def test_bad_parquet(content: bytes, expected: str, settings_for: Callable[..., Any], tmp_path: Path) -> None:
    message = message_of(settings_for("classification", train=content, suffix=".parquet"), tmp_path / "cache")
    assert message.startswith(f"{tmp_path}/train.parquet{expected}")


PACKAGES = {
    "unknown": ("no_such_package", "x", "package 'no_such_package' is not installed"),
    "dotted": ("os.path", "x", "package 'os.path': not the import name of a top-level package"),
    "no such path": ("automl", "nothing", "package 'automl' has no 'nothing' in "),
    "out of it": ("automl", "../pyproject.toml", "package 'automl': '../pyproject.toml' leads out of the package"),
}


@pytest.mark.parametrize(("package", "path", "expected"), PACKAGES.values(), ids=PACKAGES)
def test_bad_package(package: str, path: str, expected: str, tmp_path: Path) -> None:
    data = DataSettings(kind="package", location=package, path=path)
    assert expected in message_of(TaskSettings(type="classification", data=data, metric="accuracy"), tmp_path)


HUB = {
    "offline": ("nobody/nothing", "hub data set 'nobody/nothing' cannot be loaded: "),
    "address": ("https://example.org/x", "data.hub: 'https://example.org/x' is not a data set id"),
    "path": ("../secrets", "data.hub: '../secrets' is not a data set id"),
}


@pytest.mark.parametrize(("location", "expected"), HUB.values(), ids=HUB)
def test_bad_hub(location: str, expected: str, tmp_path: Path) -> None:
    settings = TaskSettings(type="classification", data=DataSettings(kind="hub", location=location), metric="accuracy")
    assert message_of(settings, tmp_path).startswith(expected)


CONVERSATIONS = {
    "no columns": ('{"question": "x"}', "", ", row 1: no column 'messages'; columns are 'question'; one of these sets"),
    "format": ('{"messages": []}', "chatml", "task.format: unknown format 'chatml'; known: auto, messages, sharegpt,"),
    "empty list": ('{"messages": []}', "", ", row 1, column 'messages': is an empty list; a list of messages"),
    "text": ('{"messages": "hi"}', "", ", row 1, column 'messages': is str 'hi'; a list of messages (role, content)"),
    "not an object": ('{"messages": ["hi"]}', "", ", row 1, column 'messages': message 1 is 'hi'; an object with role"),
    "role": (
        '{"messages": [{"role": "narrator", "content": "x"}]}', "",
        ", row 1, column 'messages': message 1 has the role 'narrator'; known: system, ",
    ),
    "empty message": (
        '{"messages": [{"role": "user", "content": ""}]}', "",
        ", row 1, column 'messages': text of message 1 is empty",
    ),
    "a picture": (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "",
        ", row 1, column 'messages': message 1 has a part of type 'image_url'; only text can be learnt",
    ),
    "a weight between": (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0.5}]}', "",
        ", row 1, column 'messages': message 2 has the weight 0.5; 0 (no loss) or 1 is needed",
    ),
    "no assistant": (
        '{"messages": [{"role": "user", "content": "x"}]}', "",
        ", row 1, column 'messages': no message of the assistant",
    ),
    "assistant first": (
        '{"conversations": [{"from": "gpt", "value": "x"}]}', "",
        ", row 1, column 'conversations': the assistant speaks first",
    ),
    "no response": ('{"instruction": "x", "output": ""}', "", ", row 1, column 'output': text is empty"),
    "wrong format": ('{"prompt": "x", "response": "y"}', "alpaca", ", row 1: no column 'instruction'; columns are"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "name", "expected"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_bad_conversation(row: str, name: str, expected: str, settings_for: Callable[..., Any], tmp_path: Path) -> None:
    settings = settings_for("instruction", train=row + "\n", format=name or "auto")
    assert expected in message_of(settings, tmp_path / "cache")


COMPLETIONS = {
    "no response": ('{"prompt": "x", "answer": "y"}', "loss", ", row 1: no column 'response'; columns are 'prompt', "),
    "empty response": ('{"prompt": "x", "response": " "}', "loss", ", row 1, column 'response': text is empty"),
    "nothing to compare": ('{"text": "x"}', "rouge_l", ": metric 'rouge_l' compares responses, but the data is plain"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "metric", "expected"), COMPLETIONS.values(), ids=COMPLETIONS)
def test_bad_completion(row: str, metric: str, expected: str, settings_for: Callable[..., Any], tmp_path: Path) -> None:
    settings = settings_for("completion", train=row + "\n", metric=metric)
    assert expected in message_of(settings, tmp_path / "cache")
