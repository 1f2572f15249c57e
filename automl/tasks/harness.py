"""Metrics of tasks of lm-eval: the model is handed over as it stands in memory (docs/adr/0042).

No code of a data set or a model is run, and no task that calls itself unsafe. A task file of the user's may name
functions beside it, as lm-eval has it; which file that is comes from the user's space file, never from a database.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automl.errors import MetricError, MissingExtraError
from automl.space.spec import HarnessTask, OwnMetric, TaskSettings
from automl.watchdog import beat

_SEED = 1234
"""Seed of everything that a task draws; lm-eval's default for examples in prompts."""

_LISTED = 8
"""Tasks that a message names."""


def harness_scores(model: Any, tokenizer: Any, settings: TaskSettings) -> dict[str, float]:
    """What the tasks of lm-eval among the metrics say of the model, by name. Raises MetricError.

    model: of transformers, with whatever adapter is on it, in eval mode.
    """
    found: dict[HarnessTask, Mapping[str, Any]] = {}
    scores = {}
    for name, own in settings.own_metrics.items():
        if own.lm_eval is None or name not in settings.measured:
            continue
        run = own.lm_eval.run
        if run not in found:
            found[run] = _results(own, model, tokenizer)
        scores[name] = _value(own, found[run])
    return scores


def harness_mistake(own: OwnMetric) -> str:
    """Why this metric cannot be measured, told before anything is trained: the task and its data are loaded for it."""
    assert own.lm_eval is not None
    try:
        check_harness(own.lm_eval.task)
        with _undisturbed(), _without_code_of_others():
            loaded = _loaded(own.lm_eval.run, own.folder)
    except MissingExtraError as error:
        return str(error)
    except (Exception, SystemExit, _CodeOfOthers) as error:  # noqa: BLE001 - of lm-eval, its data, and functions in task files
        return f"task {own.lm_eval.task!r} of lm-eval cannot be loaded: {_said(error)}"
    tasks = loaded["tasks"]
    if not _has_value(tasks, loaded["groups"]):
        listed = ", ".join(list(tasks)[:_LISTED]) + (", ..." if len(tasks) > _LISTED else "")
        return f"task {own.lm_eval.task!r} of lm-eval is {len(tasks)} tasks without a value for all; name one: {listed}"
    known = sorted({name for task in tasks.values() for name in task.aggregation()})
    wanted = own.lm_eval.metric.partition(",")[0]
    if wanted not in known:
        return f"task {own.lm_eval.task!r} of lm-eval has no metric {wanted!r}; it has {', '.join(known)}"
    return filter_mistake(own.lm_eval, tasks, loaded["groups"])


def filter_mistake(wanted: HarnessTask, tasks: Mapping[str, Any], groups: Mapping[str, Any]) -> str:
    """What is wrong with the part of a metric's name after the comma, the filter of answers; empty if nothing is."""
    name, _, chosen = wanted.metric.partition(",")
    known = sorted(_filters(name, tasks, groups))
    keys = ", ".join(repr(f"{name},{each}") for each in known)
    if chosen and known and chosen not in known:
        return f"task {wanted.task!r} of lm-eval has no {wanted.metric!r}; it has {keys}"
    if not chosen and len(known) > 1:
        return f"metric {name!r} of task {wanted.task!r} of lm-eval is ambiguous; name one of {keys}"
    return ""


def _filters(metric: str, tasks: Mapping[str, Any], groups: Mapping[str, Any]) -> set[str]:
    """Names of the filters that there is a value of the metric for; none where lm-eval does not tell."""
    of_tasks = {each.name for task in tasks.values() for each in getattr(task, "_filters", ())}
    if not groups:
        return of_tasks
    added = getattr(next(iter(groups.values())), "aggregate_metric_list", None) or ()
    lists = [each.filter_list for each in added if each.metric == metric]
    return of_tasks if any(each is None for each in lists) else {name for each in lists for name in each}


def _has_value(tasks: Mapping[str, Any], groups: Mapping[str, Any]) -> bool:
    """Whether there is one value: of a task, or of a group that adds up; tasks may only share a tag."""
    if not groups:
        return len(tasks) == 1
    whole = next(iter(groups.values()))  # the one that is named, before those within it
    return bool(whole.has_aggregation)


def check_harness(what: str) -> None:
    """Raise MissingExtraError, naming what needs it, if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise MissingExtraError(f"{what}: needs the package lm-eval; pip install 'automl-lora[lm-eval]'")


def _results(own: OwnMetric, model: Any, tokenizer: Any) -> Mapping[str, Any]:
    """Values by metric and filter, of the task or of the group of that name."""
    from lm_eval.evaluator import evaluate

    assert own.lm_eval is not None
    try:
        with _undisturbed(), _without_code_of_others():
            loaded = _loaded(own.lm_eval.run, own.folder)
            told = evaluate(
                _handed_over(model, tokenizer, own.lm_eval.batch_size),
                loaded,
                limit=own.lm_eval.limit,
                bootstrap_iters=0,
                log_samples=False,
            )
            results: dict[str, Mapping[str, Any]] = told["results"]
    except (Exception, SystemExit, _CodeOfOthers) as error:
        raise MetricError(f"metric {own.name}: task {own.lm_eval.task!r} of lm-eval: {_said(error)}") from error
    names = [*loaded["groups"], *results]
    return results[names[0]]


def _value(own: OwnMetric, results: Mapping[str, Any]) -> float:
    assert own.lm_eval is not None
    metric, task = own.lm_eval.metric, own.lm_eval.task
    found = {key: value for key, value in results.items() if metric in (key, key.partition(",")[0])}
    if len(found) != 1:
        known = ", ".join(
            repr(key) for key, value in results.items() if isinstance(value, float) and "_stderr" not in key
        )
        what = "is ambiguous" if found else "is not there"
        raise MetricError(f"metric {own.name}: {metric!r} of task {task!r} {what}; lm-eval has {known}")
    value = float(next(iter(found.values())))
    if not math.isfinite(value):
        raise MetricError(f"metric {own.name}: task {task!r} of lm-eval answered {value}, which is no finite number")
    return value


@lru_cache(maxsize=16)
def _loaded(run: HarnessTask, folder: str) -> Any:
    """The task with its data, or a group with its tasks, as lm-eval has them."""
    from lm_eval.tasks import TaskManager

    _without_bars()
    is_file = run.task.endswith((".yaml", ".yml"))
    spec = _of_file(Path(folder, run.task).expanduser()) if is_file else run.task
    loaded = TaskManager(include_defaults=not is_file).load([spec])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None or run.shots is not None:
            task.set_config(key="num_fewshot", value=run.shots or 0)
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def _of_file(path: Path) -> dict[str, Any]:
    """What a task file says; files of data that lie beside it are named as they are found from any folder."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config: dict[str, Any] = load_yaml(path)
    files = config.get("dataset_kwargs", {}).get("data_files")
    if files:
        config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": _beside(files, path.parent)}
    return config


def _beside(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _beside(each, folder) for split, each in files.items()}
    if isinstance(files, list):
        return [_beside(each, folder) for each in files]
    return str((folder / files).resolve()) if (folder / str(files)).exists() else files


class _Lent:
    """A model that lm-eval may call and nothing else: it would tie weights that are apart, and set modes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = model.config
        self.device = next(model.parameters()).device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        beat()
        return self._model(*args, **kwargs)

    def generate(self, **kwargs: Any) -> Any:
        beat()
        return self._model.generate(**kwargs)


def _handed_over(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """The model as lm-eval calls it: without bars, and in the precision around us."""
    from lm_eval.models.huggingface import HFLM

    class InMemory(HFLM):  # type: ignore[misc]  # lm-eval has no types
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    lent = _Lent(model)
    device = lent.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return InMemory(
        pretrained=lent,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        mixed_precision_dtype=precision,
        add_bos_token=False if _ends_texts(tokenizer) else None,
        truncation=True,
        trust_remote_code=False,
    )


def _ends_texts(tokenizer: Any) -> bool:
    """Whether a token is put after every text: lm-eval would have answers come after it."""
    whole, bare = (tokenizer("a", add_special_tokens=said)["input_ids"] for said in (True, False))
    return list(whole[-1:]) != list(bare[-1:])


def _without_bars() -> None:
    """lm-eval shows bars of its own while it builds requests; there is no argument for it (0.4.13, api/task.py)."""
    from functools import partial

    import lm_eval.api.task as tasks
    from tqdm import tqdm

    tasks.tqdm = partial(tqdm, disable=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside the block lm-eval says errors alone and draws by its seed; afterwards all draws go on as before."""
    logger = logging.getLogger("lm_eval")
    level, states = logger.level, (random.getstate(), np.random.get_state())
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            random.seed(_SEED)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])


class _CodeOfOthers(BaseException):
    """Code of a metric was to be fetched. lm-eval goes on after any Exception, without the metric (0.4.13)."""


@contextmanager
def _without_code_of_others() -> Iterator[None]:
    """Inside the block no code of a metric is loaded from a hub, as `evaluate.load` does for names it is given."""
    import evaluate

    def refuse(path: object, *_: object, **__: object) -> None:
        raise _CodeOfOthers(f"metric {path!r} would be code of somebody else; those of lm-eval itself are used alone")

    load, evaluate.load = evaluate.load, refuse
    try:
        yield
    finally:
        evaluate.load = load


def _said(error: BaseException) -> str:
    """An error of another package in one line."""
    lines: Sequence[str] = str(error).split()
    text = " ".join(lines)[:300]
    return text if isinstance(error, _CodeOfOthers) else f"{type(error).__name__}: {text}"
