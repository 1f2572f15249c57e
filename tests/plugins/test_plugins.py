"""Packages that add something of every kind, used from a space file without an edit in automl/."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from automl.methods.registry import METHODS
from tests.fresh import run_python
from tests.plugins.installed import HERE, install, write_metadata
from tests.sweep.tiny_world import make_world

ROOT = HERE.parents[1]
PACKAGES = ("aside", "balanced", "hadamard", "rated", "rising", "tempering")
RATINGS = {"negative": 0.1, "neutral": 0.5, "positive": 0.9}


def with_packages(
    site: Path, folder: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder with the packages of `site` installed."""
    path = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return run_python(*arguments, cwd=folder, env={**os.environ, **path, **environment})


def automl(folder: Path, *arguments: str, site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command so."""
    return with_packages(site, folder, "-m", "automl.cli.main", *arguments, **environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the path with all packages."""
    return install(tmp_path_factory.mktemp("site"), *PACKAGES)


def rated_world(folder: Path) -> Path:
    """Model, rated texts and a space file that names all packages but an executor, and trains in workers of Ray."""
    space = make_world(folder, executor="ray", trials=6)
    rows = map(json.loads, (folder / "data.jsonl").read_text(encoding="utf-8").splitlines())
    rated = [json.dumps({"text": row["text"], "rating": RATINGS[row["label"]]}) + "\n" for row in rows]
    (folder / "rated.jsonl").write_text("".join(rated), encoding="utf-8")
    text = space.read_text(encoding="utf-8")
    for old, new in {
        "type: classification": "type: rated\n  classes: 3",
        "./data.jsonl": "./rated.jsonl",
        "metric: accuracy": "metric: balanced_accuracy",
        "sampler: random": "sampler: {name: tempering, cooling: 0.01}",
        "pruner: none": "pruner: {name: rising, by: 0.5}",
        "space:\n": "space:\n  init_deviation: {type: categorical, choices: [0.1, 0.2]}\n",
        "fixed: {": "fixed: {method: hadamard, ",
    }.items():
        assert old in text
        text = text.replace(old, new)
    space.write_text(text, encoding="utf-8")
    return space


@pytest.fixture(scope="module")
def world(site: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished search with all four, which the workers have to find too, and what it said."""
    folder = tmp_path_factory.mktemp("rated")
    rated_world(folder)
    result = automl(folder, "search", "space.yaml", "--json", site=site, AUTOML_CACHE=str(shared_cache))
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


@pytest.mark.ray
def test_a_search_with_all_four_learns(world: tuple[Path, Any]) -> None:
    _, outcome = world
    assert outcome["counts"] == {"RUNNING": 0, "COMPLETE": 6, "PRUNED": 0, "FAIL": 0}
    assert outcome["metric"] == "balanced_accuracy"
    assert outcome["baseline"] == pytest.approx(1 / 3), "of three classes one is right"
    assert outcome["best"]["value"] > outcome["baseline"] + 0.1


@pytest.mark.ray
def test_the_sampler_decides(world: tuple[Path, Any]) -> None:
    """Once a trial is complete, this one nearly always takes the parameters of the best."""
    folder, _ = world
    with sqlite3.connect(folder / "automl.db") as connection:
        query = "SELECT t.number, p.param_value FROM trials t JOIN trial_params p USING (trial_id) WHERE param_name = ?"
        rates = dict(connection.execute(query, ("learning_rate",)).fetchall())
    assert len(rates) == 6
    assert len(set(rates.values())) < 4


SEARCH = """
import automl
study = automl.search(
    model="./model", data="./rated.jsonl", study="notebook", metric="balanced_accuracy",
    task={"type": "rated", "classes": 3, "seed": 3},
    space={"rank": automl.Int(1, 4), "learning_rate": automl.Float(1e-3, 1e-1, log=True),
           "init_deviation": automl.Float(0.2, 0.4)},
    fixed={"method": "hadamard", "target": "qv", "max_length": 12},
    sampler={"name": "tempering", "cooling": 0.01}, pruner={"name": "rising", "by": 0.5},
    trials=2, steps=10, run={"executor": "aside", "threads": 1}, show_progress=False,
)
assert all(0.2 <= trial.params["init_deviation"] <= 0.4 for trial in study.trials)
print(len(study.trials), study.best.value, study.export("out"))
"""


def test_a_search_from_python_names_them_too_and_its_adapter_is_measured_again(
    site: Path, shared_cache: Path, tmp_path: Path
) -> None:
    rated_world(tmp_path)
    result = with_packages(site, tmp_path, "-c", SEARCH, AUTOML_CACHE=str(shared_cache))
    assert result.returncode == 0, result.stderr
    trials, best, exported = result.stdout.split()
    assert (trials, exported) == ("2", "out")
    assert 0 < float(best) <= 1
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LOHA"


def test_they_pass_the_contracts_of_their_seams(site: Path, tmp_path: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")  # it is a fork
    result = with_packages(site, tmp_path, "-m", "pytest", *options, HERE / "cases.py")
    assert result.returncode == 0, result.stdout
    passed = re.match(r"(\d+) passed", result.stdout.splitlines()[-1])
    assert passed, result.stdout
    assert int(passed.group(1)) > 50


@pytest.mark.parametrize("name", PACKAGES)
def test_each_is_one_file_and_one_line(name: str) -> None:
    project = tomllib.loads((HERE / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (points,) = project["entry-points"].values()
    assert len(points) == 1
    assert len(list((HERE / name).rglob("*.py"))) == 1


@pytest.mark.parametrize(
    "word", ["tempering", "balanced_accuracy", "hadamard", "RatedTask", "RisingPruner", "AsideExecutor"]
)
def test_nothing_of_them_is_in_automl(word: str) -> None:
    files = [path for folder in ("automl", "dashboards") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert [path for path in files if word in path.read_text(encoding="utf-8")] == []


def test_the_schema_lists_them_with_their_keys(site: Path, tmp_path: Path) -> None:
    result = automl(tmp_path, "schema", site=site)
    schema = json.loads(result.stdout)
    checker = jsonschema.Draft202012Validator(schema)
    document = {
        "version": 1,
        "study": "s",
        "model": "m",
        "task": {"type": "rated", "data": "a.jsonl", "classes": 4, "metric": "balanced_accuracy"},
        "fixed": {"method": "hadamard", "init_deviation": 0.2},
        "space": {
            "init_deviation": "auto",
            "rank": {"type": "int", "low": 1, "high": 4, "when": {"init_deviation": 1}},
        },
        "search": {"sampler": {"name": "tempering", "cooling": 0.5}, "pruner": {"name": "rising", "by": 0.1}},
        "run": {"executor": "aside"},
    }
    checker.validate(document)
    for wrong in (
        {"sampler": {"name": "tempering", "cooling": 2}},
        {"sampler": "temper"},
        {"pruner": {"name": "rising", "by": -1}},
    ):
        assert not checker.is_valid({**document, "search": wrong})
    assert not checker.is_valid({**document, "fixed": {"init_deviation": 11}})
    assert not checker.is_valid({**document, "task": {**document["task"], "classes": "four"}})  # type: ignore[dict-item]


HEAD = "version: 1\nstudy: s\nmodel: m\n"
MISTAKES = {
    "sampler": (
        "task: {type: rated, data: a.csv}\nsearch: {sampler: temperin}",
        "5:19: search.sampler: 'temperin' is not known; known: tpe, gp, cmaes, qmc, random, grid, nsga2, tempering"
        " (did you mean 'tempering'?)",
    ),
    "pruner": (
        "task: {type: rated, data: a.csv}\nsearch: {pruner: risin}",
        "5:18: search.pruner: 'risin' is not known; known: halving, peer, median, percentile, successive-halving,"
        " hyperband, patient, threshold, none, rising (did you mean 'rising'?)",
    ),
    "executor": (
        "task: {type: rated, data: a.csv}\nrun: {executor: asid}",
        "5:17: run.executor: 'asid' is not known; known: ray, inline, aside (did you mean 'aside'?)",
    ),
    "its option": (
        "task: {type: rated, data: a.csv}\nsearch: {sampler: {name: tempering, cooling: 2}}",
        "5:46: search.sampler.cooling: 2 is not below 1",
    ),
    "method": (
        "task: {type: rated, data: a.csv}\nfixed: {method: hadamar}",
        f"5:17: fixed.method: 'hadamar' is not known; known: {', '.join(METHODS.built_in)}, hadamard, peft:…"
        " (did you mean 'hadamard'?)",
    ),
    "task": (
        "task: {type: ratd, data: a.csv}",
        "4:14: task.type: 'ratd' is not known; known: classification, completion, instruction, multi_label,"
        " token_classification, regression, seq2seq, preference, table, rated"
        " (did you mean 'rated'?)",
    ),
    "its key": ("task: {type: rated, data: a.csv, classes: 1}", "4:43: task.classes: 1 is below 2, the least allowed"),
    "metric": (
        "task: {type: rated, data: a.csv, metric: balanced}",
        "4:42: task.metric: unknown metric 'balanced'; known: accuracy, macro_f1, mcc, loss, balanced_accuracy"
        " (did you mean 'balanced_accuracy'?)",
    ),
    "metric of another task": (
        "task: {type: completion, data: a.csv, metric: balanced_accuracy}",
        "4:47: task.metric: 'balanced_accuracy' does not fit a completion task; known: loss, perplexity, exact_match,"
        " rouge_l, rouge_1, rouge_2, bleu, chrf, squad_em, squad_f1, json_valid, json_match, json_schema",
    ),
    "its setting": (
        "task: {type: rated, data: a.csv}\nfixed: {method: hadamard, init_deviation: 11}",
        "5:43: fixed.init_deviation: 11 is above 10, the most allowed",
    ),
    "nearly its setting": (
        "task: {type: rated, data: a.csv}\nfixed: {method: hadamard}\nspace: {init_deviaton: auto}",
        "6:9: space.init_deviaton: unknown key; known: method, rank, alpha, alpha_ratio, dropout, target,"
        " learning_rate, weight_decay, batch_size, warmup, schedule, clip, use_rslora, neftune_alpha, init_deviation"
        " (did you mean 'init_deviation'?)",
    ),
    "its setting without it": (
        "task: {type: rated, data: a.csv}\nfixed: {init_deviation: 0.2}",
        "5:9: fixed.init_deviation: is of method hadamard; this space chooses lora",
    ),
    "its setting for another": (
        "task: {type: rated, data: a.csv}\nspace:\n  method: {type: categorical, choices: [lora, hadamard]}\n"
        "  init_deviation: {type: float, low: 0.1, high: 0.2, when: {method: lora}}",
        "7:69: space.init_deviation.when.method: method lora does not use init_deviation",
    ),
    "what it does not use": (
        "task: {type: rated, data: a.csv}\nfixed: {method: hadamard, dropout: 0.1}",
        "5:27: fixed.dropout: is not used by method hadamard; remove it",
    ),
    "method that cannot be shared out": (
        "task: {type: rated, data: a.csv}\nfixed: {method: hadamard}\nrun: {shards: 2}",
        "5:17: fixed.method: 'hadamard' is not known with shards: 2; use lora",
    ),
}


def test_mistakes_are_answered_as_for_what_is_built_in(site: Path, tmp_path: Path) -> None:
    """All in one process, for it is the same reading that answers them."""
    for name, (body, _) in MISTAKES.items():
        (tmp_path / f"{name}.yaml").write_text(HEAD + body + "\n", encoding="utf-8")
    script = (
        "import sys\nfrom pathlib import Path\nfrom automl.errors import ConfigError\n"
        "from automl.space.load import load_space\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        load_space(Path(name))\n"
        "    except ConfigError as error:\n        print(error)\n"
        "heavy = [name for name in ('torch', 'ray', 'peft', 'transformers', 'optuna') if name in sys.modules]\n"
        "print(heavy)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *(f"{name}.yaml" for name in MISTAKES)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [f"{name}.yaml:{said}" for name, (_, said) in MISTAKES.items()]
    assert result.stdout.splitlines() == [*expected, "[]"]


@pytest.fixture(scope="module")
def broken_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that cannot be imported, in every group."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "automl_broken.py").write_text("import no_such_package\n", encoding="utf-8")
    groups = ("samplers", "pruners", "methods", "metrics", "tasks", "executors")
    write_metadata(folder, "broken", "0.1", {f"automl.{group}": {"odd": "automl_broken:ODD"} for group in groups})
    return folder


def test_a_broken_package_is_no_matter_for_who_does_not_name_it(broken_site: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(HEAD + "task: {type: classification, data: a.csv}\n", encoding="utf-8")
    assert automl(tmp_path, "--help", site=broken_site).stderr == ""
    valid = automl(tmp_path, "validate", "space.yaml", site=broken_site)
    assert (valid.returncode, "odd" in valid.stderr) == (0, False)
    listed = automl(tmp_path, "schema", site=broken_site)
    assert listed.returncode == 0
    assert "Traceback" not in listed.stderr
    assert "sampler 'odd' of broken 0.1 cannot be used: ModuleNotFoundError" in listed.stderr


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("search: {sampler: odd}", "5:19: search.sampler: sampler"),
        ("search: {pruner: odd}", "5:18: search.pruner: pruner"),
        ("fixed: {method: odd}", "5:17: fixed.method: method"),
        ("run: {executor: odd}", "5:17: run.executor: executor"),
    ],
    ids=["sampler", "pruner", "method", "executor"],
)
def test_a_broken_package_is_one_line_for_who_names_it(
    broken_site: Path, tmp_path: Path, body: str, place: str
) -> None:
    text = f"{HEAD}task: {{type: classification, data: a.csv}}\n{body}\n"
    (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
    result = automl(tmp_path, "validate", "space.yaml", site=broken_site)
    assert result.returncode == 2
    said = "'odd' of broken 0.1 cannot be used: ModuleNotFoundError: No module named 'no_such_package'"
    assert result.stderr.splitlines() == [f"space.yaml:{place} {said}"]


def test_names_that_are_built_in_do_not_look_at_packages(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(HEAD + "task: {type: classification, data: a.csv}\n", encoding="utf-8")
    script = (
        "from pathlib import Path\nfrom automl import registry\nfrom automl.space.load import load_space\n"
        "load_space(Path('space.yaml'))\nprint(registry._entry_points.cache_info().misses)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "0\n"
