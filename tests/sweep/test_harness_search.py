"""Metrics of lm-eval's tasks: a local task file, no network, the model handed over as it stands in memory."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import automl
from automl.errors import ConfigError, MetricError
from automl.space.spec import DataSettings, HarnessTask, OwnMetric, TaskSettings
from automl.tasks.harness import _has_value, harness_mistake, harness_scores
from tests.training.preference_cases import lively_llama
from tests.training.training_cases import write_backbone, write_rows

pytestmark = pytest.mark.full

TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: ["w30", "w31", "w32"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm}]
"""

WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: !function helpers.target
generation_kwargs: {max_gen_toks: 3, do_sample: false, until: ["w31"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

SEARCH: dict[str, Any] = {
    "space": {"learning_rate": automl.Float(1e-3, 3e-2, log=True)},
    "fixed": {"target": "all-linear", "batch_size": 4, "max_length": 16},
    "sampler": "random",
    "pruner": "none",
    "trials": 2,
    "steps": 4,
    "evaluate_every": 4,
    "squeeze": False,
    "show_progress": False,
}


@pytest.fixture
def home(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    write_backbone(tmp_path / "model", "llama", kind="causal-lm", model=lively_llama())
    write_rows(tmp_path / "rows.jsonl", rows=60)
    draw = random.Random(3)
    documents = [{"question": f"w{draw.randrange(30)} w{n % 30}", "answer": draw.randrange(3)} for n in range(40)]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (tmp_path / "tasks" / "capitals.yaml").write_text(TASK)
    (tmp_path / "tasks" / "written.yaml").write_text(WRITTEN)
    (tmp_path / "tasks" / "helpers.py").write_text("def target(doc):\n    return f'w3{doc[\"answer\"]}'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def harness(metric: str = "acc", task: str = "tasks/capitals.yaml", **fields: Any) -> dict[str, Any]:
    return {"lm_eval": {"task": task, "metric": metric, **fields}, "direction": "maximize"}


@pytest.mark.parametrize("slots", [1, 2])
def test_a_task_of_lm_eval_decides_a_search(home: Path, slots: int) -> None:
    task = {"type": "completion", "metric": harness(limit=30), "metrics": ["loss", harness("acc_norm", limit=30)]}
    run = {"executor": "inline", "threads": 1, "precision": "fp32", "slots": slots}
    study = automl.search("./model", "rows.jsonl", study=f"s{slots}", task=task, run=run, **SEARCH)
    values = [trial.value for trial in study.trials]
    assert len(values) == 2
    assert all((30 * value) == pytest.approx(round(30 * value)) for value in values)
    assert study.best.value == max(values)
    assert all(set(trial.metrics) == {"loss", "maximize:capitals-acc_norm"} for trial in study.trials)


def own(metric: str, task: str, folder: Path, **fields: Any) -> OwnMetric:
    return OwnMetric(
        name=f"maximize:{metric}", lm_eval=HarnessTask(task=task, metric=metric, **fields), folder=str(folder)
    )


def settings(*metrics: OwnMetric) -> TaskSettings:
    return TaskSettings(
        type="completion",
        data=DataSettings(kind="files"),
        metric="loss",
        metrics=tuple(each.name for each in metrics),
        own_metrics={each.name: each for each in metrics},
    )


def test_the_score_is_that_of_the_model_in_memory(home: Path) -> None:
    from automl.models.backbone import load_tokenizer, resolve_model
    from automl.space.spec import ModelSettings

    tokenizer = load_tokenizer(resolve_model(ModelSettings(kind="folder", location=str(home / "model")), home))
    model = lively_llama().eval()
    wanted = settings(own("acc", "tasks/capitals.yaml", home), own("exact_match", "tasks/written.yaml", home))
    torch.manual_seed(5)
    random.seed(5)
    first = harness_scores(model, tokenizer, wanted)
    assert [random.random(), float(torch.rand(1))] == _draws(5)
    assert harness_scores(model, tokenizer, wanted) == first
    documents = [json.loads(line) for line in (home / "tasks" / "capitals.jsonl").read_text().splitlines()]
    right = 0
    for document in documents:
        ids = tokenizer(document["question"], add_special_tokens=False)["input_ids"]  # it would end the text
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        choices = [tokenizer(f"w3{number}", add_special_tokens=False)["input_ids"][0] for number in range(3)]
        right += int(logits[choices].argmax()) == document["answer"]
    assert first["maximize:acc"] == pytest.approx(right / len(documents))
    other = lively_llama(seed=9).eval()
    assert harness_scores(other, tokenizer, wanted) != first


def _draws(seed: int) -> list[float]:
    torch.manual_seed(seed)
    random.seed(seed)
    return [random.random(), float(torch.rand(1))]


@pytest.mark.parametrize(
    ("metric", "task", "said"),
    [
        ("acc", "tasks/nowhere.yaml", "cannot be loaded: FileNotFoundError"),
        ("acc", "no_such_task", "cannot be loaded: KeyError: .*no_such_task"),
        ("f1", "tasks/capitals.yaml", "has no metric 'f1'; it has acc, acc_norm"),
        ("acc", "tasks/broken.yaml", "cannot be loaded: "),
        ("acc", "tasks/hub.yaml", "cannot be loaded: "),
        ("acc", "tasks/ends.yaml", "cannot be loaded: SystemExit"),
        ("acc", "tasks/list.yaml", "cannot be loaded: ValueError"),
        ("acc", "tasks/others.yaml", "cannot be loaded: metric 'someone/score' would be code of somebody else"),
        ("acc", "tasks/named.yaml", "cannot be loaded: metric 'accuracy' would be code of somebody else"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_line(home: Path, metric: str, task: str, said: str) -> None:
    tasks = home / "tasks"
    (tasks / "broken.yaml").write_text("task: [")
    (tasks / "list.yaml").write_text("- task: a")
    (tasks / "hub.yaml").write_text("task: h\ndataset_path: no/such-data\noutput_type: multiple_choice\n")
    (tasks / "ends.yaml").write_text("task: e\ndataset_path: json\ndoc_to_text: !function ends.now\n")
    (tasks / "others.yaml").write_text(TASK.replace("metric: acc_norm", "metric: someone/score"))
    (tasks / "named.yaml").write_text(TASK.replace("metric: acc_norm", "metric: accuracy, hf_evaluate: true"))
    (tasks / "ends.py").write_text("raise SystemExit(3)\n")
    message = harness_mistake(own(metric, task, home))
    assert "\n" not in message
    assert message.startswith(f"task {task!r} of lm-eval ")
    assert re.search(said, message), message


class Group(NamedTuple):
    """What is asked of a group of lm-eval, which a task file cannot hold."""

    has_aggregation: bool


def test_several_tasks_are_a_metric_if_they_add_up() -> None:
    both = {"arc_easy": object(), "arc_challenge": object()}
    assert not _has_value(both, {})  # they share a tag
    assert not _has_value(both, {"arc": Group(False)})
    assert _has_value(both, {"arc": Group(True), "within": Group(False)})
    assert _has_value({"arc_easy": object()}, {})


def test_virtual_tokens_are_refused(home: Path) -> None:
    task = {"type": "completion", "metric": harness(limit=4)}
    with pytest.raises(ConfigError, match="lm-eval reads answers by their places, which virtual tokens move"):
        automl.search("./model", "rows.jsonl", study="v", task=task, **SEARCH | {"fixed": {"method": "prompt"}})


def test_a_metric_that_is_not_among_the_results_is_named(home: Path) -> None:
    from automl.models.backbone import load_tokenizer, resolve_model
    from automl.space.spec import ModelSettings

    tokenizer = load_tokenizer(resolve_model(ModelSettings(kind="folder", location=str(home / "model")), home))
    wanted = settings(own("acc,strict", "tasks/capitals.yaml", home, limit=2))
    with pytest.raises(
        MetricError, match=r"'acc,strict' of task 'tasks/capitals.yaml' is not there; lm-eval has 'acc,none'"
    ):
        harness_scores(lively_llama().eval(), tokenizer, wanted)
