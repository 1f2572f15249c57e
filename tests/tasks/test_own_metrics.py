"""Functions and programs of the user's own: where they come from, and what is said before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from automl.errors import ConfigError, MetricError
from automl.space.load import load_space, parse_space
from automl.space.spec import DataSettings, HarnessTask, OwnMetric, SweepSpec, TaskSettings
from automl.space.submitted import validated
from automl.tasks.classification import Classification
from automl.tasks.harness import filter_mistake
from automl.tasks.own_metrics import check_own_metrics
from automl.tasks.text_metrics import generating, text_scores

HEAD = "version: 1\nstudy: own\nmodel: org/name\n"
JUDGE = "metric: {command: [python, judge.py], direction: minimize, timeout: 2m}"


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Path]:
    """A folder that is forgotten again as a place of modules."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def settings(own: OwnMetric, kind: str = "completion") -> TaskSettings:
    data = DataSettings(kind="files")
    return TaskSettings(type=kind, data=data, metric="loss", metrics=(own.name,), own_metrics={own.name: own})


def read(task: str, *, is_users: bool = True) -> SweepSpec:
    return parse_space(
        f"{HEAD}task: {{type: completion, data: r.csv, {task}}}\n", "s.yaml", Path("/n"), is_users=is_users
    )


def test_a_program_of_the_space_file() -> None:
    task = read(JUDGE).task
    assert task.metric == "minimize:judge"
    assert task.own_metrics["minimize:judge"] == OwnMetric(
        name="minimize:judge", command=("python", "judge.py"), folder="/n", timeout=120.0
    )


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("python: 'my_pkg.metrics:score'", "maximize:score"),
        ("python: 'my_pkg:Judge.score'", "maximize:score"),
        ("command: ['./bin/rate answers', --strict]", "maximize:rate-answers"),
        ("command: [python, -u, tools/judge.v2.py, --model, x]", "maximize:judge.v2"),
        ("command: [bash, -c, 'echo 1']", "maximize:bash"),
        ("command: [judge], name: helpfulness", "maximize:helpfulness"),
        ("lm_eval: {task: arc_easy, metric: acc}", "maximize:arc_easy-acc"),
        (
            "lm_eval: {task: ./t/mine.yaml, metric: 'exact_match,strict-match'}",
            "maximize:mine-exact_match-strict-match",
        ),
    ],
)
def test_what_it_is_called(metric: str, name: str) -> None:
    assert read(f"metric: {{{metric}, direction: maximize}}").task.metric == name


def test_a_time_limit_is_no_part_of_what_a_study_means() -> None:
    assert read(JUDGE).sha256 == read(JUDGE.replace("2m", "5m")).sha256
    assert read(JUDGE).sha256 != read(JUDGE.replace("judge.py", "other.py")).sha256


def test_nothing_is_taken_out_of_a_database() -> None:
    """Texts from there are read without `is_users`: the study can be looked at, and not measured."""
    spec = read(JUDGE, is_users=False)
    assert spec.task.metric == "minimize:judge"
    assert spec.task.own_metrics == {}
    with pytest.raises(ConfigError) as caught:
        check_own_metrics(spec.task, spec.source)
    assert str(caught.value) == (
        "s.yaml: task.metric: 'minimize:judge' is a program or function of a space file, and none is taken out of a"
        " database; name the space file instead of the study"
    )


HARNESS = "metric: {lm_eval: {task: t.yaml, metric: acc, limit: 20}, direction: maximize}"


def test_a_task_of_lm_eval_writes_no_answers_of_ours() -> None:
    task = read(HARNESS).task
    assert task.own_metrics["maximize:t-acc"].lm_eval == HarnessTask(task="t.yaml", metric="acc", limit=20)
    assert generating(task) == []
    assert read(HARNESS).sha256 == read(HARNESS.replace("limit: 20", "limit: 20, batch_size: 2")).sha256
    assert read(HARNESS).sha256 != read(HARNESS.replace("20", "30")).sha256
    assert read(HARNESS, is_users=False).task.own_metrics == {}
    with pytest.raises(ConfigError, match="lm-eval judges models of completion, instruction tasks, not of a class"):
        parse_space(f"{HEAD}task: {{type: classification, data: r.csv, {HARNESS}}}\n", "s.yaml", Path("/n"))


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    with pytest.raises(ConfigError) as caught:
        check_own_metrics(read(HARNESS).task, "s.yaml")
    needed = "t.yaml: needs the package lm-eval; pip install 'automl-lora[lm-eval]'"
    assert str(caught.value) == f"s.yaml: task.metric: {needed}"


def test_a_submitted_file_runs_nothing() -> None:
    for metric in (JUDGE, "metrics: [{python: 'os:getcwd', direction: maximize}]"):
        with pytest.raises(ConfigError, match=r"task\.metric: a submitted sweep runs no program or function"):
            validated(f"{HEAD}task: {{type: completion, data: r.csv, {metric}}}\n")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("metric: {direction: maximize}", "task.metric: needs exactly one of python, command, lm_eval; none is given"),
        ("metric: {python: 'a:b', command: [c], direction: maximize}", "python and command are given"),
        ("metric: {command: [judge]}", "task.metric.direction: "),
        ("metric: {lm_eval: arc_easy, direction: maximize}", "task.metric.lm_eval: 'arc_easy' is not a mapping"),
        ("metric: {lm_eval: {task: a}, direction: maximize}", "task.metric.lm_eval.metric: is missing"),
        ("metric: {lm_eval: {metric: acc}, direction: maximize}", "task.metric.lm_eval.task: is missing"),
        ("metric: {lm_eval: {task: a, metric: acc, limit: 0}, direction: maximize}", "task.metric.lm_eval.limit: "),
        ("metric: {lm_eval: {task: a, metric: acc, limit: 0.5}, direction: maximize}", "0.5 is not a whole number"),
        ("metric: {lm_eval: {task: a, metric: acc, tasks: [a]}, direction: maximize}", "lm_eval.tasks: unknown key"),
        ("metric: {lm_eval: {task: '', metric: acc}, direction: maximize}", "task.metric.lm_eval.task: is empty"),
        ("metric: {lm_eval: {task: a, metric: acc}, timeout: 2m, direction: maximize}", "timeout belongs to command"),
        ("metric: {command: [judge], direction: up}", "task.metric.direction: "),
        ("metric: {command: python judge.py, direction: maximize}", "task.metric.command: "),
        ("metric: {command: [], direction: maximize}", "task.metric.command: must be a list of a program"),
        ("metric: {command: [' '], direction: maximize}", "task.metric.command: must be a list of a program"),
        ("metric: {command: [python, 3], direction: maximize}", "task.metric.command[1]: "),
        ("metric: {command: [judge], direction: maximize, timeout: 0}", "task.metric.timeout: "),
        ("metric: {command: [judge], direction: maximize, timeout: soon}", "task.metric.timeout: 'soon' is not a time"),
        ("metric: {command: [judge], direction: maximize, shell: true}", "task.metric.shell: unknown key"),
        ("metric: {command: [judge], direction: maximize, name: 'a b'}", "task.metric.name: 'a b' is not a name"),
        ("metric: {python: score, direction: maximize}", "task.metric.python: 'score' is not a function in a module"),
        ("metric: {python: '../x:score', direction: maximize}", "task.metric.python: '../x:score' is not a function"),
        ("metric: {python: 'a:b', direction: maximize, timeout: 3}", "task.metric: timeout belongs to command"),
        ("metric: [loss]", "task.metric: a list is not the name of a metric"),
        ("metric: 3", "task.metric: "),
        ("metric: 'maximize:judge'", "'maximize:judge' is how one of your own is called; write what it is"),
        ("metrics: [{python: 'a:b', direction: maximize}, {python: 'c:b', direction: maximize}]", "task.metrics[1]: "),
    ],
)
def test_mistakes_are_said_at_their_place(task: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(task)
    assert str(caught.value).startswith("s.yaml:4:")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "metric", "expected"),
    [
        ("classification", "command: [judge]", "a command judges answers of completion, instruction, seq2seq tasks"),
        (
            "preference",
            "python: 'a:b'",
            "a function judges answers of classification, completion, instruction, seq2seq tasks",
        ),
    ],
)
def test_tasks_that_they_do_not_fit(kind: str, metric: str, expected: str) -> None:
    text = f"{HEAD}task: {{type: {kind}, data: r.csv, metric: {{{metric}, direction: maximize}}}}\n"
    with pytest.raises(ConfigError) as caught:
        parse_space(text, "s.yaml", Path("/n"), is_users=True)
    assert expected in str(caught.value)


def test_a_function_beside_the_space_file(beside: Path) -> None:
    (beside / "my_judge.py").write_text(
        "def share(right, said):\n    return sum(map(str.__eq__, right, said)) / len(said)\n"
    )
    (beside / "space.yaml").write_text(
        f"{HEAD}task: {{type: completion, data: r.csv, metric: {{python: 'my_judge:share', direction: maximize}}}}\n"
    )
    task = load_space(beside / "space.yaml").task
    check_own_metrics(task, "space.yaml")
    assert generating(task) == ["maximize:share"]
    assert text_scores(["a", "b"], ["a", "c"], task)["maximize:share"] == 0.5


def test_what_is_installed_comes_before_what_lies_beside(beside: Path) -> None:
    """A file beside the space file replaces no module of Python or of a package, for whoever imports it later."""
    (beside / "colorsys.py").write_text("raise AssertionError('this is not the one')\n")
    own = OwnMetric(name="maximize:rgb_to_hsv", python="colorsys:rgb_to_hsv", folder=str(beside))
    check_own_metrics(settings(own), "s.yaml")


@pytest.mark.parametrize(
    ("text", "python", "expected"),
    [
        ("", "no_such_module:score", "'no_such_module:score' cannot be used: ModuleNotFoundError: No module named"),
        ("", "broken:score", "'broken:score' cannot be used: AttributeError: module 'broken' has no attribute 'score'"),
        ("score = 3", "broken:score", "'broken:score' is no function but 3"),
        ("raise ValueError('two\\nlines')", "broken:score", "'broken:score' cannot be used: ValueError: two lines"),
        ("import sys\nsys.exit(3)", "broken:score", "'broken:score' cannot be used: SystemExit: 3"),
        ("def score(:", "broken:score", "'broken:score' cannot be used: SyntaxError: "),
    ],
)
def test_functions_that_cannot_be_used(text: str, python: str, expected: str, beside: Path) -> None:
    (beside / "broken.py").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        check_own_metrics(settings(OwnMetric(name="maximize:score", python=python, folder=str(beside))), "s.yaml")
    assert str(caught.value).startswith(f"s.yaml: task.metric: {expected}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "error", "expected"),
    [
        ("def score(right, said): return float('nan')", MetricError, "answered nan, which is no finite number"),
        ("def score(right, said): raise SystemExit('bye')", MetricError, r"ended the program \(bye\)"),
        ("def score(right, said): return 'much'", ValueError, "could not convert string to float"),
        ("def score(right, said): return None", TypeError, "float"),
        ("def score(right, said): return 1 / 0", ZeroDivisionError, "division"),
    ],
)
def test_functions_that_fail(text: str, error: type[Exception], expected: str, beside: Path) -> None:
    (beside / "failing.py").write_text(text + "\n")
    own = OwnMetric(name="maximize:score", python="failing:score", folder=str(beside))
    with pytest.raises(error, match=expected):
        text_scores(["a"], ["b"], settings(own))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("no-such-program-here",), "'no-such-program-here' is no program that can be run"),
        (("./judge",), "'./judge' is no program that can be run in "),
        ((sys.executable, "-c", "print('no')"), "tried with two rows, metric maximize:x: "),
    ],
)
def test_programs_are_tried_before_training(command: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    own = OwnMetric(name="maximize:x", command=command, folder=str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        check_own_metrics(settings(own), "s.yaml")
    assert str(caught.value).startswith(f"s.yaml: task.metric: {expected}")


def test_a_function_judges_classes_too(beside: Path) -> None:
    (beside / "my_classes.py").write_text(
        "def hits(right, said):\n    return sum(a == b for a, b in zip(right, said))\n"
    )
    own = OwnMetric(name="maximize:hits", python="my_classes:hits", folder=str(beside))
    task = Classification(settings(own, "classification"))
    assert task.settings.measured == ("loss", "maximize:hits")
    from automl.tasks.own_metrics import own_class_scores

    assert own_class_scores([1, 2, 2], [1, 2, 0], task.settings) == {"maximize:hits": 2.0}
    assert own_class_scores([1, 2, 2], [1, 2, 0], task.briefly().settings) == {}


@pytest.mark.parametrize(
    ("metric", "filters", "added", "message"),
    [
        ("acc", ["none"], None, ""),
        ("acc,none", ["none"], None, ""),
        ("acc,strict", ["none"], None, "task 't' of lm-eval has no 'acc,strict'; it has 'acc,none'"),
        ("acc,strict", ["flexible", "strict"], None, ""),
        ("acc", ["flexible", "strict"], None, "is ambiguous; name one of 'acc,flexible', 'acc,strict'"),
        ("acc,strict", ["none", "strict"], [("acc", ["none"])], "has no 'acc,strict'; it has 'acc,none'"),
        ("acc,strict", ["strict"], [("acc", None)], ""),
        ("acc,strict", [], None, ""),  # a version that does not tell
    ],
)
def test_a_filter_of_lm_eval_that_is_not_there_is_told_before_anything_is_trained(
    metric: str, filters: list[str], added: list[tuple[str, list[str] | None]] | None, message: str
) -> None:
    named = [SimpleNamespace(name=name) for name in filters]
    lists = [SimpleNamespace(metric=name, filter_list=listed) for name, listed in added or ()]
    groups = {} if added is None else {"g": SimpleNamespace(aggregate_metric_list=lists)}
    tasks = {"t": SimpleNamespace(_filters=named)}
    assert filter_mistake(HarnessTask(task="t", metric=metric), tasks, groups).endswith(message)
    assert bool(message) == bool(filter_mistake(HarnessTask(task="t", metric=metric), tasks, groups))
