"""What there is to say of the data reaches whoever looks, and an old study keeps its rows."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from automl.setup.plan import make_plan
from automl.setup.starter import starting_space
from automl.space.derive import derived_text
from automl.space.load import load_space, parse_space
from automl.sweep.run import run_sweep
from tests.architectures import save_tiny
from tests.sweep.tiny_world import make_world

CUT = "max_length 8 cuts 240 of 240 rows; 95% of the rows have at most "
FEW = "training rows (0."


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> Path:
    """A space file that cuts every row, beside its data and model."""
    space = make_world(tmp_path, trials=1, steps=5)
    space.write_text(space.read_text(encoding="utf-8").replace("max_length: 12", "max_length: 8"), encoding="utf-8")
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text(encoding="utf-8").replace('", "label"', ' w3 w4 w5", "label"'), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_CACHE", str(shared_cache))
    return space


def test_truncation_is_said_by_log_plan_summary_and_report(
    world: Path, shared_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load_space(world)
    assert any(line.startswith(CUT) for line in make_plan(spec, shared_cache, probe=False).advice)
    caplog.clear()
    summary = run_sweep(spec, shared_cache)
    for said in (CUT, FEW):
        assert [text for text in caplog.messages if said in text] == [text for text in summary.notes if said in text]
        assert sum(said in text for text in summary.notes) == 1
    folder = Path(summary.folder)
    for said in (CUT, FEW):
        assert said in (folder / "summary.md").read_text(encoding="utf-8")
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["notes"] == list(summary.notes)
    assert all(said in (folder / "report.html").read_text(encoding="utf-8") for said in (CUT, FEW))


def test_a_study_keeps_the_rules_for_data_that_it_began_with(world: Path, shared_cache: Path) -> None:
    spec = load_space(world)
    run_sweep(replace(spec, task=replace(spec.task, rules=1)), shared_cache)
    with sqlite3.connect("automl.db") as connection:  # as it was before there were numbers
        old = "UPDATE automl_events SET detail = json_remove(detail, '$.rules', '$.notes') WHERE kind = 'ground'"
        connection.execute(old)
    summary = run_sweep(replace(spec, search=replace(spec.search, trials=2)), shared_cache)
    assert len(summary.trials) == 2
    with sqlite3.connect("automl.db") as connection:
        rules = connection.execute("SELECT json_extract(detail, '$.rules') FROM automl_events WHERE kind = 'ground'")
        assert rules.fetchall() == [(None,), (1,)]


def test_new_keys_for_data_are_no_part_of_what_a_study_means() -> None:
    task = "task: {type: instruction, data: {file: a.jsonl%s}%s}\n"
    files = [
        "version: 1\nstudy: s\nmodel: ./m\n" + task % changes
        for changes in (("", ""), (", ignore: [id]", ", bad_rows: skip, thinking: keep"), ("", ", normalize: squad"))
    ]
    first, again, other = (parse_space(text, "space.yaml", Path("/there")).sha256 for text in files)
    assert first == again == "962760be0b1199cf64e20a805c06ab40b80343b63b6bbe19d655e8262cdb0851"
    assert other != first


def length_of(text: str) -> int:
    found = re.search(r"max_length: (\d+)", text)
    assert found is not None
    return int(found[1])


def test_init_takes_max_length_from_the_data(world: Path) -> None:
    rows = [{"text": "w3 " * (10 if number < 95 else 60), "label": "ab"[number % 2]} for number in range(100)]
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = starting_space("./model", "./texts.jsonl", task_type=None, study=None).text
    assert length_of(text) == 16
    assert "95% of the rows have at most 10; longer ones are cut" in text


def test_init_finds_columns_whose_names_have_blanks(world: Path) -> None:
    lines = ["Text,Label "] + [f"w3 w{3 + number % 9},{'ab'[number % 2]}" for number in range(40)]
    Path("blanks.csv").write_text("\n".join(lines), encoding="utf-8")
    spec = parse_space(
        starting_space("./model", "./blanks.csv", task_type=None, study=None).text, "space.yaml", Path.cwd()
    )
    assert spec.task.type == "classification"
    assert spec.task.data.columns == {"text": "Text", "label": "Label "}


def test_init_stays_within_what_the_model_reads(world: Path) -> None:
    rows = [{"text": "w3 " * 3000, "label": "ab"[number % 2]} for number in range(10)]
    Path("texts.json").write_text(json.dumps(rows), encoding="utf-8")
    text = starting_space("./model", "./texts.json", task_type=None, study=None).text
    positions = json.loads(Path("model/config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    assert length_of(text) == positions < 3000
    assert f"the model reads {positions}" in text


def test_init_reads_prompts_and_completions(world: Path) -> None:
    save_tiny(Path("decoder"), "llama", kind="causal-lm")
    rows = [{"prompt": f"w3 w{number}", "completion": "w4 " * 30} for number in range(40)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = starting_space("./decoder", "./pairs.jsonl", task_type=None, study=None).text
    spec = parse_space(text, "space.yaml", Path.cwd())
    assert spec.task.type == "instruction"
    assert spec.task.max_length > 32


def test_a_mixture_is_searched_and_its_shares_are_said(world: Path, shared_cache: Path) -> None:
    lines = Path("data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(lines[:60]), encoding="utf-8")
    Path("many.jsonl").write_text("".join(lines[60:]), encoding="utf-8")
    parts = "[{file: few.jsonl, weight: 3}, {file: many.jsonl, weight: 1}]"
    world.write_text(world.read_text(encoding="utf-8").replace("./data.jsonl", parts), encoding="utf-8")
    spec = load_space(world)
    said = [line for line in make_plan(spec, shared_cache, probe=False).advice if "of what is trained on" in line]
    assert [Path(line.partition(":")[0]).name for line in said] == ["few.jsonl", "many.jsonl"]
    assert ["75.0%" in said[0], "25.0%" in said[1]] == [True, True]
    summary = run_sweep(spec, shared_cache)
    assert [trial.state for trial in summary.trials] == ["COMPLETE"]
    assert all(line in summary.notes for line in said)
    assert "0.75 " in (Path(summary.folder) / "report.html").read_text(encoding="utf-8")
    again = derived_text(spec, study="again", heading="made", folder=Path.cwd())
    assert parse_space(again, "again", Path("/elsewhere")).task.data == spec.task.data
