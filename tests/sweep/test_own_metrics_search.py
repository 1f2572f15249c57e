"""A search that a judge of the user's decides, and what becomes of its study without the space file."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from automl.cli.main import main
from automl.cli.study_argument import opened, spec_to_measure
from tests.training.preference_cases import lively_llama
from tests.training.training_cases import write_backbone, write_rows

SPACE = """\
version: 1
study: judged
model: ./model
task:
  type: completion
  data: ./rows.jsonl
  metric: {{command: [{python}, judge.py], direction: maximize, timeout: 60s}}
  metrics: [{{python: "lengths:mean", direction: minimize}}, loss]
  max_new_tokens: 3
  generate_rows: 8
space: {{learning_rate: {{type: categorical, choices: [1.0e-5, 2.0e-2]}}}}
fixed: {{target: all-linear, batch_size: 8, max_length: 16}}
search: {{sampler: grid, pruner: none, steps: 30, evaluate_every: 30, squeeze: false}}
verify: {{automatic: false}}
run: {{executor: inline, threads: 1, precision: fp32}}
"""

JUDGE = """\
import json, sys
rows = [json.loads(line) for line in sys.stdin]
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps(rows) + "\\n")
if len(open("calls.jsonl").readlines()) == 3:
    sys.exit("busy")
print(json.dumps({"score": sum(row["response"] == row["prediction"] for row in rows) / len(rows)}))
"""


def ended(*command: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(command))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_judge_decides_a_search(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_backbone(tmp_path / "model", "llama", kind="causal-lm", model=lively_llama())
    write_rows(tmp_path / "rows.jsonl", rows=90)
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    (tmp_path / "lengths.py").write_text("def mean(_, said):\n    return sum(map(len, said)) / len(said)\n")
    (tmp_path / "space.yaml").write_text(SPACE.format(python=sys.executable), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert ended("search", "space.yaml") == 0
    with sqlite3.connect("automl.db") as database:
        found = dict(database.execute("SELECT metric, COUNT(*) FROM automl_metric_values GROUP BY metric").fetchall())
        judged = dict(
            database.execute("SELECT trial, value FROM automl_metric_values WHERE metric = 'maximize:judge'").fetchall()
        )
    assert {name: found[name] for name in ("maximize:judge", "minimize:mean", "loss")} == {
        "maximize:judge": 2,
        "minimize:mean": 2,
        "loss": 2,
    }
    assert max(judged.values()) > 0.2 > min(judged.values())
    # Tried before training, the untuned model, and two trials, one of which was asked for twice.
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(rows) for rows in calls] == [2, 8, 8, 8, 8]
    assert all(row["prompt"].startswith("w") and row["response"].startswith("w5") for row in calls[1])
    capsys.readouterr()
    assert ended("status", "judged", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["metric"], status["direction"]) == ("maximize:judge", "maximize")
    assert status["best"]["value"] == max(judged.values())
    # By its name alone the study can be looked at, and not measured.
    before = (tmp_path / "calls.jsonl").read_bytes()
    assert ended("verify", "judged", "-n", "3") == 2
    assert "none is taken out of a database; name the space file instead of the study" in capsys.readouterr().err
    assert (tmp_path / "calls.jsonl").read_bytes() == before
    with opened("space.yaml", None) as (database, name):
        own = spec_to_measure(database, name, "space.yaml").task.own_metrics
    assert own["maximize:judge"].command == (sys.executable, "judge.py")
    assert ended("export", "judged", "-o", "adapter") == 0  # compares the loss
    assert ended("schedule", "add", "space.yaml", "--cron", "0 3 * * *") == 2
    assert "no program or function is run" in " ".join(capsys.readouterr().err.split())
