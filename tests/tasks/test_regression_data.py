"""Numbers as labels: what is read, the unit they are learnt in, and every way they can be wrong, in one line each."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from sklearn import metrics as oracle

from automl.errors import DataError
from automl.head import Scale
from automl.metric import METRICS, margin_mistake, practical_margin, standard_error
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Prepared
from automl.tasks.numbers import as_grades
from automl.tasks.regression import Regression

Settings = Callable[..., TaskSettings]


def rows(count: int = 60, *, grades: bool = False) -> list[dict[str, Any]]:
    draw = random.Random(1)
    label: Callable[[], float] = (lambda: draw.randint(1, 5)) if grades else (lambda: round(draw.gauss(200.0, 50.0), 3))
    return [{"text": f"good film {number}", "label": label()} for number in range(count)]


def lines(given: list[dict[str, Any]], *more: str) -> str:
    return "".join(f"{line}\n" for line in (*map(json.dumps, given), *more))


def table(*labels: str) -> str:
    """A CSV file of good rows, then one for each of these labels."""
    good = "".join(f"film {row},{row}.5\n" for row in range(20))
    return f"text,label\n{good}" + "".join(f"film,{label}\n" for label in labels)


def prepared(settings: TaskSettings, tokenizer: Any, folder: Path) -> Prepared:
    return make_task(settings).prepare(tokenizer, folder / "cache")


def test_labels_are_kept_in_full_and_their_unit_is_that_of_train(
    settings_for: Settings, bert_tokenizer: Any, tmp_path: Path
) -> None:
    settings = settings_for("regression", train=lines(rows()), metric="mse")
    task, made = make_task(settings), prepared(settings, bert_tokenizer, tmp_path)
    by_split = {split: [row["labels"] for row in task.rows(made, split)] for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert sorted(label for labels in by_split.values() for label in labels) == sorted(row["label"] for row in rows())
    mean = sum(by_split["train"]) / len(by_split["train"])
    assert made.scale == Scale(
        pytest.approx(mean),
        pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in by_split["train"]) / len(by_split["train"]))),
    )
    assert made.labels == ("label",)
    assert any("with mean" in note for note in made.notes)
    assert prepared(settings, bert_tokenizer, tmp_path) == made


@pytest.mark.parametrize("label", ["3", "-0.25", "+.5", "1e3", "1E-3", "7.", " 4 "])
def test_csv_writes_numbers_as_text(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path, label: str) -> None:
    settings = settings_for("regression", train=table(label), suffix=".csv", metric="mse", test_share=0.0)
    task, made = make_task(settings), prepared(settings, bert_tokenizer, tmp_path)
    found = [row["labels"] for split in ("train", "validation") for row in task.rows(made, split)]  # type: ignore[arg-type]
    assert float(label) in found


GOOD = lines(rows(40))
BAD = {
    "missing column": (lines([{"text": "x", "lable": 1.0}] * 3), "no column 'label'; columns are 'text', 'lable'"),
    "missing in a row": (lines(rows(40), '{"text": "x"}'), "row 41: no column 'label'"),
    "null": (
        lines(rows(40), '{"text": "x", "label": null}'),
        "row 41, column 'label': label is None; every row needs a",
    ),
    "NaN": (lines(rows(40), '{"text": "x", "label": NaN}'), "label is nan; every row needs a number"),
    "the word nan": (lines(rows(40), '{"text": "x", "label": "nan"}'), "label is 'nan'; every row needs a number"),
    "infinite": (lines(rows(40), '{"text": "x", "label": Infinity}'), "label is inf; numbers of at most 1e+30"),
    "minus infinite": (lines(rows(40), '{"text": "x", "label": -Infinity}'), "label is -inf; numbers of at most 1e+30"),
    "the word inf": (lines(rows(40), '{"text": "x", "label": "inf"}'), "label is 'inf'; a number such as 3 or -0.25"),
    "huge": (lines(rows(40), '{"text": "x", "label": 1e300}'), "label is 1e+300; numbers of at most 1e+30"),
    "beyond floats": (lines(rows(40), '{"text": "x", "label": 1%s}' % ("0" * 400)), "numbers of at most 1e+30"),
    "huge as text": (lines(rows(40), '{"text": "x", "label": "1e999"}'), "label is inf; numbers of at most 1e+30"),
    "text": (lines(rows(40), '{"text": "x", "label": "good"}'), "label is 'good'; a number such as 3 or -0.25"),
    "blank": (lines(rows(40), '{"text": "x", "label": "  "}'), "label is '  '; every row needs a number"),
    "true": (lines(rows(40), '{"text": "x", "label": true}'), "label is a truth value True; a number is needed"),
    "list": (lines(rows(40), '{"text": "x", "label": [1.0]}'), "label is list [1.0]; a number is needed"),
    "object": (lines(rows(40), '{"text": "x", "label": {"a": 1}}'), "label is dict {'a': 1}; a number is needed"),
    "decimal comma": (lines(rows(40), '{"text": "x", "label": "3,5"}'), "label is '3,5'; a number such as"),
    "thousands": (lines(rows(40), '{"text": "x", "label": "1,000.5"}'), "label is '1,000.5'; a number such as"),
    "underscore": (lines(rows(40), '{"text": "x", "label": "1_000"}'), "label is '1_000'; a number such as"),
    "hexadecimal": (lines(rows(40), '{"text": "x", "label": "0x10"}'), "label is '0x10'; a number such as"),
    "per cent": (lines(rows(40), '{"text": "x", "label": "5%"}'), "label is '5%'; a number such as"),
    "Arabic digits": (lines(rows(40), '{"text": "x", "label": "\u0663"}'), "label is '\u0663'; a number such as"),
    "superscript": (lines(rows(40), '{"text": "x", "label": "5\u00b2"}'), "label is '5\u00b2'; a number such as"),
    "two numbers": (lines(rows(40), '{"text": "x", "label": "1 2"}'), "label is '1 2'; a number such as"),
    "no text": (lines(rows(40), '{"text": "", "label": 1.0}'), "row 41, column 'text': text is empty"),
    "half a pair": (
        lines([{"text": "a", "text_pair": "b", "label": 1.0}] * 3, '{"text": "x", "label": 2.0}'),
        "row 4: no column 'text_pair'",
    ),
    "constant": (
        lines([{"text": f"x {n}", "label": 3.5} for n in range(40)]),
        "training labels are 3.5; labels that diff",
    ),
    "as good as constant": (
        lines([{"text": f"x {n}", "label": 1.0 + n * 1e-14} for n in range(40)]),
        "too close to be told apart",
    ),
    "one row": (lines([{"text": "x", "label": 3.5}]), "1 rows leave none for"),
    "empty": ("", "is empty (0 bytes)"),
    "no JSON": (lines(rows(40), "{'text': 1}"), "row 41: not JSON"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_labels_are_named_in_one_line(settings_for: Settings, tmp_path: Path, content: str, message: str) -> None:
    settings = settings_for("regression", train=content, metric="mse")
    with pytest.raises(DataError) as caught:
        prepared(settings, None, tmp_path)  # nothing is tokenised
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_differ_in_validation_alone_cannot_be_learnt(settings_for: Settings, tmp_path: Path) -> None:
    train = lines([{"text": f"x {n}", "label": 2.0} for n in range(20)])
    with pytest.raises(DataError, match="all 16 training labels are 2; labels that differ are needed"):
        prepared(settings_for("regression", train=train, validation=GOOD, metric="mse"), None, tmp_path)


def test_labels_far_from_train_are_said(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    far = lines([{"text": f"y {n}", "label": 1e6} for n in range(5)])
    made = prepared(settings_for("regression", train=GOOD, validation=far, metric="mse"), bert_tokenizer, tmp_path)
    assert "5 of 5 validation labels lie outside of those of train" in made.notes


def test_grades_are_whole_numbers(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    settings = settings_for("regression", train=lines(rows(grades=True)), metric="quadratic_kappa")
    scale = prepared(settings, bert_tokenizer, tmp_path).scale
    assert scale is not None
    assert scale.levels == (1, 5)
    assert as_grades([-3.0, 1.49, 1.5, 4.4, 9.9], scale) == [1.0, 1.0, 2.0, 4.0, 5.0]
    with pytest.raises(DataError, match="labels are no grades; quadratic_kappa needs whole numbers"):
        prepared(settings_for("regression", train=GOOD, metric="quadratic_kappa"), None, tmp_path)


def test_metrics_are_those_of_scipy_and_scikit_learn() -> None:
    draw = random.Random(5)
    truth = [float(draw.randint(1, 5)) for _ in range(80)]
    said = [min(5.0, max(1.0, value + draw.randint(-1, 2))) for value in truth]  # with ties
    expected = {
        "mse": oracle.mean_squared_error(truth, said),
        "rmse": oracle.root_mean_squared_error(truth, said),
        "mae": oracle.mean_absolute_error(truth, said),
        "r2": oracle.r2_score(truth, said),
        "pearson": stats.pearsonr(truth, said).statistic,
        "spearman": stats.spearmanr(truth, said).statistic,
        "quadratic_kappa": oracle.cohen_kappa_score(truth, said, weights="quadratic"),
    }
    for name, value in expected.items():
        score = METRICS[name].score
        assert score is not None
        assert score(truth, said) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_losses_are_torchs_in_standard_units(loss: str) -> None:
    settings = TaskSettings(type="regression", data=None, metric="mse")  # type: ignore[arg-type]
    task = Regression(settings)
    task._scale, task._loss = Scale(10.0, 4.0), loss
    labels, said = torch.tensor([10.0, 2.0, 31.0], dtype=torch.float64), torch.tensor([[0.5], [-1.0], [2.0]])
    batch = {"input_ids": torch.zeros(3, 1), "labels": labels}
    errors = [abs(a - b) for a, b in zip([0.5, -1.0, 2.0], [0.0, -2.0, 5.25], strict=True)]
    by_hand = {
        "mse": [e**2 for e in errors],
        "mae": errors,
        "huber": [e**2 / 2 if e < 1 else e - 0.5 for e in errors],
    }
    assert float(task.loss(_Says(said), batch).total) == pytest.approx(sum(by_hand[loss]))


class _Says(torch.nn.Module):
    """A model that says this, whatever it is asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **inputs: Any) -> Any:
        return self


def test_a_metric_without_a_lower_end_is_judged_by_its_value() -> None:
    assert not METRICS["r2"].is_bounded
    assert standard_error("r2", -3.0, 100) == pytest.approx(0.15)
    assert practical_margin("r2", 0.5) == pytest.approx(0.01)
    assert margin_mistake(0.6, "r2") == ""
