"""Whole searches through the command line: what lands in SQL and on disk, and what a second run does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from automl.cli.main import main
from tests.databases import free_port
from tests.sweep.tiny_world import make_world


class Said(NamedTuple):
    """How a command has ended."""

    returncode: int
    stdout: str
    stderr: str


def started(folder: Path, *arguments: str, cache: Path) -> subprocess.Popen[str]:
    """A command as a user starts it, from the world's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "automl.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "AUTOML_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def automl(folder: Path, *arguments: str, cache: Path) -> Said:
    """Run a command from the world's folder; in this process, which has torch loaded already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_CACHE", str(cache))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main(arguments)
    return Said(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def answer(result: Said) -> Any:
    """The JSON a command has printed; it must have succeeded."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "automl.db") as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, Any]:
    """A finished search of four trials, and what it said."""
    folder = tmp_path_factory.mktemp("a finished search")
    make_world(folder, squeeze=True)
    process = started(folder, "search", "space.yaml", "--json", cache=shared_cache)
    out, err = process.communicate(timeout=600)
    return folder, answer(Said(process.returncode, out, err))


def test_search_ends_with_every_trial_in_sql_and_the_best_above_the_majority(world: tuple[Path, Any]) -> None:
    folder, outcome = world
    assert outcome["counts"] == {"RUNNING": 0, "COMPLETE": 4, "PRUNED": 0, "FAIL": 0}
    assert outcome["best"]["value"] > outcome["baseline"] + 0.2
    assert outcome["spent_steps"] == outcome["full_steps"] == 80
    assert query(folder, "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'") == [(4,)]
    # Five metrics at four steps of four trials; nothing but validation is measured.
    steps = query(folder, "SELECT DISTINCT step FROM automl_measurements ORDER BY step")
    assert steps == [(5,), (10,), (15,), (20,)]


def test_only_the_best_adapters_stay(world: tuple[Path, Any]) -> None:
    folder, outcome = world
    output = folder / "automl-output" / "tiny"
    kept = {path.name for path in (output / "adapters").iterdir()}
    rows = query(folder, "SELECT trial FROM automl_artifacts WHERE deleted_at IS NULL")
    assert kept == {f"trial-{trial:05d}" for (trial,) in rows}
    assert len(kept) == 2
    assert (output / "best").resolve() == Path(outcome["best"]["adapter"]).resolve()
    assert not (output / "slots").exists()
    assert json.loads((output / "summary.json").read_text(encoding="utf-8"))["best"] == outcome["best"]


def test_the_winner_is_squeezed(world: tuple[Path, Any]) -> None:
    folder, outcome = world
    squeeze, best = outcome["squeeze"], outcome["best"]
    assert squeeze["trial"] == best["number"]
    whole, *cuts = squeeze["curve"]
    assert whole["metrics"]["accuracy"] == pytest.approx(best["value"])  # the rows are all that there are
    assert {cut["kind"] for cut in cuts} == {"global"}
    assert squeeze["headline"] in (folder / "automl-output/tiny/summary.md").read_text()
    small = folder / "automl-output/tiny/squeezed"
    assert small.is_dir() == (squeeze["knee"] < squeeze["parameters"])


def test_searching_again_changes_nothing(world: tuple[Path, Any], shared_cache: Path) -> None:
    folder, outcome = world
    before = query(folder, "SELECT * FROM trials ORDER BY trial_id")
    squeezed = query(folder, "SELECT * FROM automl_squeezes")
    again = answer(automl(folder, "search", "space.yaml", "--json", cache=shared_cache))
    assert again["best"] == outcome["best"]
    assert query(folder, "SELECT * FROM trials ORDER BY trial_id") == before
    assert query(folder, "SELECT * FROM automl_squeezes") == squeezed, "it is not squeezed again, not even stored again"


@pytest.mark.parametrize("form", [[], ["--merged"]], ids=["adapter", "merged"])
def test_export_reproduces_the_metric(
    world: tuple[Path, Any], shared_cache: Path, tmp_path: Path, form: list[str]
) -> None:
    folder, outcome = world
    target = tmp_path / "exported"
    exported = answer(automl(folder, "export", "tiny", "-o", str(target), "--json", *form, cache=shared_cache))
    assert exported["measured"] == pytest.approx(outcome["best"]["value"], rel=1e-6)
    assert (target / ("config.json" if form else "adapter_config.json")).is_file()


def test_a_copy_of_an_adapter_opens_neither_model_nor_data(world: tuple[Path, Any], tmp_path: Path) -> None:
    folder, outcome = world
    copy = ["export", "tiny", "--no-check", "-o", str(tmp_path / "copy"), "--json"]
    heavy = ("torch", "transformers", "peft", "ray", "datasets")
    script = (
        f"import sys\nfrom automl.cli.main import main\ntry:\n    main({copy!r})\nexcept SystemExit as stop:\n"
        f"    assert not stop.code, stop.code\nassert not [name for name in {heavy!r} if name in sys.modules]\n"
    )
    for name in ("model", "data.jsonl"):
        (folder / name).rename(folder / f"away-{name}")
    try:
        done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        for name in ("model", "data.jsonl"):
            (folder / f"away-{name}").rename(folder / name)
    exported, adapter = json.loads(done.stdout), Path(outcome["best"]["adapter"])
    assert exported["trial"] == outcome["best"]["number"]
    for file in adapter.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()
    assert any("PeftModel.from_pretrained" in line for line in exported["lines"])


def test_doctor_finds_nothing_and_then_the_damage(world: tuple[Path, Any], shared_cache: Path) -> None:
    folder, outcome = world
    assert answer(automl(folder, "doctor", "--json", cache=shared_cache))["violations"] == []
    weights = Path(outcome["best"]["adapter"]) / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        result = automl(folder, "doctor", "--json", cache=shared_cache)
        assert result.returncode == 3
        assert json.loads(result.stdout)["violations"]
        refused = automl(folder, "export", "-o", str(folder / "x"), cache=shared_cache)
        assert "adapter_model.safetensors is damaged" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        weights.write_bytes(content)


def test_questions_about_a_study(world: tuple[Path, Any], shared_cache: Path) -> None:
    folder, _ = world
    rows = answer(automl(folder, "trials", "tiny", "--json", cache=shared_cache))
    assert [row["value"] for row in rows] == sorted((row["value"] for row in rows), reverse=True)
    assert answer(automl(folder, "best", "--json", cache=shared_cache))["configuration"]["target"] == "qv"
    assert answer(automl(folder, "status", "space.yaml", "--json", cache=shared_cache))["driven_by"] is None
    assert answer(automl(folder, "db", "status", "--json", cache=shared_cache))["ready"] is True
    unknown = automl(folder, "best", "tin", cache=shared_cache)
    assert unknown.returncode == 3
    assert "tiny" in unknown.stderr


def test_a_changed_space_is_refused_unless_allowed(tmp_path: Path, shared_cache: Path) -> None:
    space = make_world(tmp_path, trials=1, steps=5)
    answer(automl(tmp_path, "search", "space.yaml", "--json", cache=shared_cache))
    space.write_text(space.read_text(encoding="utf-8").replace("high: 8", "high: 4"), encoding="utf-8")
    refused = automl(tmp_path, "search", "space.yaml", "--trials", "2", cache=shared_cache)
    assert refused.returncode == 2
    assert "--allow-space-change" in refused.stderr
    allowed = automl(
        tmp_path, "search", "space.yaml", "--trials", "2", "--allow-space-change", "--json", cache=shared_cache
    )
    assert answer(allowed)["counts"]["COMPLETE"] == 2


def test_changed_data_is_refused(tmp_path: Path, shared_cache: Path) -> None:
    make_world(tmp_path, trials=1, steps=5)
    answer(automl(tmp_path, "search", "space.yaml", "--json", cache=shared_cache))
    with (tmp_path / "data.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"text": "w3 w4 w50", "label": "negative"}\n')
    refused = automl(tmp_path, "search", "space.yaml", "--trials", "2", cache=shared_cache)
    assert refused.returncode == 2
    assert "another data" in refused.stderr


def test_bad_data_ends_before_any_trial(tmp_path: Path, shared_cache: Path) -> None:
    make_world(tmp_path)
    with (tmp_path / "data.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"text": "w3", "label": null}\n')
    result = automl(tmp_path, "search", "space.yaml", cache=shared_cache)
    assert result.returncode == 2
    assert "data.jsonl, row 241, column 'label'" in result.stderr
    assert "Traceback" not in result.stderr
    assert query(tmp_path, "SELECT COUNT(*) FROM trials") == [(0,)]


def test_a_search_without_a_single_complete_trial_says_so_and_leaves_nothing_running(
    tmp_path: Path, shared_cache: Path
) -> None:
    space = make_world(tmp_path, trials=3, steps=20)
    text = space.read_text(encoding="utf-8") + 'constraints: ["trainable_params + learning_rate <= 100"]\n'
    space.write_text(text, encoding="utf-8")
    result = automl(tmp_path, "search", "space.yaml", cache=shared_cache)
    assert result.returncode == 1
    assert "trainable_params + learning_rate <= 100" in result.stderr
    assert "Traceback" not in result.stderr
    assert query(tmp_path, "SELECT DISTINCT state FROM trials") == [("FAIL",)]


def test_an_interrupted_search_continues_where_it_was(tmp_path: Path, shared_cache: Path) -> None:
    make_world(tmp_path, trials=3, steps=200)
    process = started(tmp_path, "search", "space.yaml", cache=shared_cache)
    deadline = time.monotonic() + 600
    measured = 0
    while measured < 10:
        time.sleep(0.2)
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"only {measured} measurements"
        if (tmp_path / "automl.db").exists():
            measured = query(tmp_path, "SELECT COUNT(*) FROM automl_measurements")[0][0]
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=240)
    assert process.returncode == 4, message
    assert "the same command continues" in message
    before = query(tmp_path, "SELECT trial, step, seconds FROM automl_measurements ORDER BY trial, step")

    outcome = answer(automl(tmp_path, "search", "space.yaml", "--json", cache=shared_cache))
    assert outcome["counts"]["COMPLETE"] == 3
    after = query(tmp_path, "SELECT trial, step, seconds FROM automl_measurements ORDER BY trial, step")
    assert [row for row in after if row in before] == before  # nothing was measured again
    assert len(after) == 3 * 40


def test_the_optuna_dashboard_shows_states_curves_and_the_metric(world: tuple[Path, Any], shared_cache: Path) -> None:
    folder, _ = world
    port = free_port()
    command = [sys.executable, "-m", "optuna_dashboard._cli", "sqlite:///automl.db", "--port", str(port)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = f"http://127.0.0.1:{port}/api/studies"
        listed = fetch(page)["study_summaries"]
        assert [study["study_name"] for study in listed] == ["tiny"]
        shown = fetch(f"{page}/{listed[0]['study_id']}?after=0")
    finally:
        process.terminate()
        process.wait(timeout=240)
    assert shown["objective_names"] == ["accuracy"]
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 4
    assert [[point["step"] for point in trial["intermediate_values"]] for trial in shown["trials"]] == [
        [5, 10, 15, 20]
    ] * 4
    # It has disturbed nothing: the invariants hold, and the study is as finished as before.
    assert answer(automl(folder, "doctor", "--json", cache=shared_cache))["violations"] == []


def fetch(url: str, *, patience: float = 240.0) -> Any:
    """JSON from a server that may still be starting."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return json.load(response)
        except OSError:  # not there yet, or slow
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
