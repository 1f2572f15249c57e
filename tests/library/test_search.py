"""Searches from Python: what they give back, how Ctrl-C ends them, and that nothing of them stays behind."""

from __future__ import annotations

import _thread
import contextlib
import json
import logging
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import automl
from automl.cli.main import main
from automl.library.study import Study
from tests.architectures import save_tiny
from tests.fresh import run_python
from tests.sweep.tiny_world import WORDS

SEARCH: dict[str, Any] = {
    "study": "tiny",
    "task": {"type": "classification", "seed": 3},
    "space": {"rank": automl.Int(1, 8, log=True), "learning_rate": automl.Float(1e-3, 1e-1, log=True)},
    "fixed": {"target": "qv", "batch_size": 8, "max_length": 12},
    "sampler": "random",
    "pruner": "none",
    "trials": 3,
    "steps": 10,
    "evaluate_every": 5,
    "seed": 3,
    "keep": 2,
    "run": {"executor": "inline", "threads": 1, "precision": "fp32"},
    "show_progress": False,
}


def rows() -> list[Mapping[str, Any]]:
    chance = random.Random(3)
    labels = [list(WORDS)[number % 3] for number in range(120)]
    texts = (
        " ".join([*(chance.choice(WORDS[label]) for _ in range(4)), f"w{12 + n % 40}"])
        for n, label in enumerate(labels)
    )
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def what_lives() -> set[str]:
    """Threads and child processes of this process."""
    children = {f"{child.pid} {child.name()}" for child in psutil.Process().children(recursive=True)}
    return children | {thread.name for thread in threading.enumerate()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a user, with a model in it; the current one while the module's tests run."""
    folder = tmp_path_factory.mktemp("a user")
    save_tiny(folder / "model", "bert", kind="classification")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOML_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def living() -> set[str]:
    return what_lives()


@pytest.fixture(scope="module")
def study(home: Path, living: set[str]) -> Study:
    """A finished study of a model and rows that were in memory."""
    model = AutoModelForSequenceClassification.from_pretrained(home / "model")
    return automl.search(model, rows(), **SEARCH)


def test_a_study_says_what_it_found(study: Study) -> None:
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert {trial.state for trial in study.trials} == {"COMPLETE"}
    assert study.best_value == study.best.value == max(trial.value or 0.0 for trial in study.trials)
    assert study.best_params.keys() == {"rank", "learning_rate"}
    assert study.best.adapter is not None
    assert (study.best.adapter / "adapter_config.json").is_file()
    assert repr(study) == f"<automl.Study 'tiny' in sqlite:///{Path.cwd()}/automl.db>"


def test_it_leaves_neither_thread_nor_process_nor_handler_of_signals(study: Study, living: set[str]) -> None:
    assert study.best.value is not None
    study.load_model()
    study.report("left.html")
    assert what_lives() <= living
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_data_frame_has_the_columns_of_optuna(study: Study) -> None:
    frame = study.trials_dataframe()
    theirs = study.optuna.trials_dataframe().rename(columns={"value_accuracy": "value"})
    common = ["number", "state", "value", "params_learning_rate", "params_rank"]
    assert frame[common].to_dict("records") == theirs[common].to_dict("records")


def test_optunas_study_can_be_read_and_not_written(study: Study) -> None:
    raw = study.optuna
    assert isinstance(raw, optuna.Study)
    assert raw.best_trial.number == study.best.number
    with pytest.raises(optuna.exceptions.StorageInternalError):
        raw.ask()


def test_the_best_model_is_loaded_with_class_names_and_measures_what_was_recorded(study: Study) -> None:
    model, tokenizer = study.load_model()
    assert model.config.id2label == dict(enumerate(sorted(WORDS)))
    split = rows()
    encoded = tokenizer(
        [str(row["text"]) for row in split], padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        found = model(**encoded).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[index] == row["label"] for index, row in zip(found, split, strict=True))
    # Recorded on a fifth of these rows, and never trained on them; the others are easier.
    assert right / len(split) >= study.best_value - 0.1
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_notebook_is_shown_tables(study: Study) -> None:
    page = study._repr_html_()
    assert f"Trial {study.best.number} is the best: accuracy" in page
    assert page.count("<tr>") == 4
    assert study.trials._repr_html_().count("<tr>") == 4
    assert f"<td>rank</td><td>{study.best.params['rank']}</td>" in study.best._repr_html_()


def test_the_written_space_file_goes_on_with_the_study(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.to_yaml("space.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["search", "space.yaml", "--json"])
    assert ended.value.code == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["best"]["number"], outcome["counts"]["COMPLETE"]) == (study.best.number, 3)


def test_the_same_call_goes_on_and_another_meaning_is_refused(study: Study, home: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(home / "model")
    again = automl.search(model, rows(), **SEARCH | {"trials": 4})
    assert len(again.trials) == 4
    assert again.trials[:3] == study.trials[:3]
    with pytest.raises(automl.SpaceChangedError, match="study 'tiny' was started with another space file"):
        automl.search(model, rows(), **SEARCH | {"steps": 12})


def test_a_study_is_opened_by_name(study: Study) -> None:
    assert automl.open_study("tiny").trials == study.trials
    assert automl.open_study("tiny", f"sqlite:///{Path.cwd()}/automl.db").best == study.best
    with pytest.raises(automl.StudyNotFoundError, match="no study 'tyni' in the database; it holds: 'tiny'"):
        automl.open_study("tyni")
    with pytest.raises(automl.StorageError, match=r"nowhere\.db"):
        automl.open_study("tiny", "sqlite:///nowhere.db")


@pytest.mark.parametrize("name", ["found.html", "found.json", "found.md"])
def test_a_report_is_written_in_the_format_of_its_ending(study: Study, name: str) -> None:
    assert "tiny" in study.report(name).read_text(encoding="utf-8")


def test_a_report_of_no_known_format_is_refused(study: Study) -> None:
    with pytest.raises(automl.ConfigError, match=r"found\.pdf: path: '\.pdf' is no known ending; it may be \.html, "):
        study.report("found.pdf")


def test_a_space_file_with_relative_paths_stays_in_its_folder(home: Path, tmp_path: Path) -> None:
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    relative = automl.search("./model", "./data.jsonl", **SEARCH | {"study": "relative", "trials": 1, "steps": 5})
    with pytest.raises(
        automl.ConfigError, match=f"its relative paths begin in {home}; write it there, or use absolute"
    ):
        relative.to_yaml(tmp_path / "space.yaml")
    assert not (tmp_path / "space.yaml").exists()


@pytest.mark.ray
def test_ctrl_c_returns_what_there_is_and_the_same_call_goes_on(home: Path, living: set[str]) -> None:
    """On a private Ray cluster, of which nothing is left."""
    wanted = SEARCH | {"study": "stopped", "steps": 150, "run": {"executor": "ray", "workers": 1, "threads": 1}}
    threading.Thread(target=_interrupt_when_trained, args=("stopped",)).start()
    study = automl.search("./model", rows(), **wanted)
    assert len(study.trials) < 3 or any(trial.state == "RUNNING" for trial in study.trials)
    assert what_lives() <= living
    study = automl.search("./model", rows(), **wanted | {"run": {"executor": "inline", "threads": 1}})
    assert [trial.state for trial in study.trials] == ["COMPLETE"] * 3


def _interrupt_when_trained(name: str) -> None:
    """Interrupt the main thread, as Ctrl-C does."""
    _wait_until_trained(name)
    _thread.interrupt_main()


def _wait_until_trained(name: str) -> None:
    """Until some trial has a measurement."""
    while True:
        time.sleep(0.1)
        with contextlib.suppress(automl.AutomlError):  # there is no such study yet
            if any(trial.steps for trial in automl.open_study(name).trials):
                return


def test_a_search_runs_in_any_thread(home: Path) -> None:
    found: list[Study] = []
    thread = threading.Thread(
        target=lambda: found.append(automl.search("./model", rows(), **SEARCH | {"study": "thread", "trials": 1}))
    )
    thread.start()
    thread.join()
    assert found[0].best.steps == 10


def test_an_error_ends_it_and_leaves_nothing(home: Path, living: set[str]) -> None:
    bad = [{"text": "", "label": "a"}, *rows()]
    with pytest.raises(automl.DataError, match="row 1, column 'text'"):
        automl.search("./model", bad, **SEARCH | {"study": "bad"})
    assert what_lives() <= living


def test_a_lease_that_was_taken_over_ends_the_search_and_not_the_process(home: Path, living: set[str]) -> None:
    threading.Thread(target=_take_over_when_trained, args=("taken",)).start()
    with pytest.raises(automl.StorageError, match="the lease was taken over by process 17 on elsewhere"):
        automl.search("./model", rows(), **SEARCH | {"study": "taken", "steps": 400})
    assert what_lives() <= living


def _take_over_when_trained(name: str) -> None:
    """Another driver takes the study, as if this process had been stopped for long."""
    _wait_until_trained(name)
    with sqlite3.connect("automl.db", timeout=60) as connection:
        statement = "UPDATE automl_sweeps SET owner = 'elsewhere:17:cafe0123' WHERE study_name = ?"
        assert connection.execute(statement, (name,)).rowcount == 1
    connection.close()


def test_the_winner_is_verified_if_asked_for(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = automl.search(
        "./model", rows(), **SEARCH | {"study": "verified", "trials": 2, "verify": {"seeds": 3, "squeeze": False}}
    )
    with caplog.at_level(logging.WARNING):
        verdict = study.verify(seeds=3, finalists=1)
    assert verdict.result["arms"]
    assert verdict.headline in study.report("verified.md").read_text(encoding="utf-8")
    assert "<td>3</td>" in verdict._repr_html_()


SCRIPT = """
import automl
study = automl.search("./model", "./data.jsonl", study="script", space={{"rank": [2, 4]}}, trials=1, steps=5, {rest})
print(study.export("exported-by-a-script"))
"""


def test_a_script_needs_no_guard_around_its_lines(home: Path) -> None:
    """Exporting checks the adapter in a fresh process, which must not begin with this script."""
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    Path("script.py").write_text(SCRIPT.format(rest="run='inline', fixed={'max_length': 12}"), encoding="utf-8")
    done = run_python("script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "exported-by-a-script\n"
