"""What a trial has forgotten, from its metrics and the untuned model's; and that the untuned one is measured once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.errors import DataError, ResourceError
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Prepared
from automl.training.kept import Keep, KeptRows


def kept_rows(folder: Path, metric: str = "loss") -> KeptRows:
    settings = TaskSettings(type="completion", data=DataSettings(kind="files"), metric=metric)
    return KeptRows(task=make_task(settings), rows=[], file=folder / "reference" / "untuned.json")


@pytest.mark.parametrize(
    ("metric", "untuned", "value", "forgotten"),
    [("loss", 2.0, 2.5, 0.5), ("loss", 2.0, 1.5, -0.5), ("exact_match", 0.75, 0.5, 0.25), ("loss", 2.0, 2.0, 0.0)],
)
def test_worse_is_above_zero_whatever_the_direction(
    tmp_path: Path, metric: str, untuned: float, value: float, forgotten: float
) -> None:
    told = kept_rows(tmp_path, metric).told({metric: value, "other": 7.0}, untuned, trial=3)
    assert told == {"kept": value, "forgetting": forgotten}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_left_out_with_a_warning(
    tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert kept_rows(tmp_path).told({"loss": value}, 2.0, trial=3) == {}
    assert caplog.messages == [f"trial 3: forgetting is not known, its loss on keep is {value}"]


def test_the_untuned_model_is_measured_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"loss": 2.25}

    assert [kept_rows(tmp_path).untuned(measure) for _ in range(3)] == [2.25] * 3
    assert len(calls) == 1
    rows = kept_rows(tmp_path)
    rows.file.write_text("{half", encoding="utf-8")
    assert rows.untuned(measure) == 2.25
    assert len(calls) == 2


def test_an_untuned_model_without_a_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keep: perplexity of the untuned model is inf"):
        kept_rows(tmp_path, "perplexity").untuned(lambda: {"perplexity": math.inf})


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "reference").write_text("a file", encoding="utf-8")
    with pytest.raises(ResourceError, match=r"untuned\.json cannot be kept: "):
        kept_rows(tmp_path).untuned(lambda: {"loss": 1.0})


def test_what_is_recorded_tells_data_and_metric(tmp_path: Path) -> None:
    rows: Any = {"train": 0, "validation": 4, "test": 0}
    task = TaskSettings(type="completion", data=DataSettings(kind="files"), metric="loss", evaluate_rows=3)
    keep = Keep(task=task, prepared=Prepared(path=tmp_path, fingerprint="abc", rows=rows))
    assert keep.record() == {"data": "abc", "metric": "loss", "rows": 3}
    assert replace(keep, task=replace(task, metric="perplexity")).record() != keep.record()
