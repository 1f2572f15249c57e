"""The table of squeezes: arms are measured once, whole cuts are exact, and its numbers are those of known scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import squeeze_memory, squeeze_table
from benchmarks.shapes import SHAPES
from benchmarks.squeeze_numbers import Measured, asked, rows_of
from benchmarks.squeeze_world import write_part, write_quick_set

Document = Callable[[Any, list[str]], dict[str, Any]]


def test_a_run_goes_on_where_it_stopped_and_a_whole_cut_is_exact(tmp_path: Path, document: Document) -> None:
    options = ["--quick", "--seeds", "1,2", "--work", str(tmp_path / "work")]
    found = document(squeeze_table.main, [*options, "--parts", "cuts,small"])
    path = tmp_path / "work" / "recorded" / "tiny.json"
    core = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert found["sets"]["tiny"]["seeds"] == "2"
    for seed in (1, 2):
        whole, full = (core[f"{arm}/{seed}"] for arm in ("cut/whole", "rank8"))
        assert whole["parameters"] == full["parameters"]
        assert whole["test"]["loss"] == pytest.approx(full["test"]["loss"], rel=1e-6)
        assert core[f"cut/global/2/{seed}"]["parameters"] <= core[f"cut/even/2/{seed}"]["parameters"]
    for key in ("rank1+/2", "recovered/even/1"):
        del core[key]
    document_of = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document_of | {"results": core}), encoding="utf-8")
    document(squeeze_table.main, [*options, "--parts", "small,ranks"])
    again = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert {key: again[key] for key in core} == core
    assert {"rank1+/2", "recovered/even/1", "as-squeezed/2", "as-random/1"} <= again.keys()
    adapters = list((tmp_path / "work").rglob("full/*.safetensors"))
    for adapter in adapters:
        adapter.unlink()
    document(squeeze_table.main, [*options, "--parts", "cuts"])
    assert json.loads(path.read_text(encoding="utf-8"))["results"] == again
    assert adapters
    assert not any(adapter.exists() for adapter in adapters)
    more = document(squeeze_table.main, [*options[:1], "--seeds", "3", *options[3:], "--parts", "cuts"])
    assert more["sets"]["tiny"]["seeds"] == "3"
    assert again.items() <= json.loads(path.read_text(encoding="utf-8"))["results"].items()


def test_another_plan_is_refused(tmp_path: Path) -> None:
    options = ["--quick", "--parts", "gate", "--work", str(tmp_path)]
    record = tmp_path / "recorded" / "tiny.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"plan": {"steps": 9}, "runs": [], "results": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match="another plan"):
        squeeze_table.main(options)


def test_rows_without_a_test_split_are_in_one_split_only(tmp_path: Path) -> None:
    text_set = write_quick_set(tmp_path / "tiny")
    (tmp_path / "tiny" / "test.jsonl").unlink()
    files = write_part(text_set, tmp_path / "tiny", tmp_path / "parts")
    train, test = (set(Path(files[split]).read_text(encoding="utf-8").splitlines()) for split in ("train", "test"))
    assert len(train) == text_set.train
    assert len(test) == text_set.test
    assert not train & test


def measured(accuracies: Mapping[str, float], **more: Mapping[str, Any]) -> Measured:
    """Arms whose accuracy rises by a hundredth from seed to seed, so that all differences are the same."""
    results = {
        f"{arm}/{seed}": {
            "rate": 1e-3,
            "seconds": 50.0,
            "test": {"accuracy": value + seed / 100, "loss": 1.0 - value},
        }
        for arm, value in accuracies.items()
        for seed in range(1, 6)
    }
    plan = {
        "name": "made",
        "rank": 16,
        "metric": "accuracy",
        "test": 500,
        "steps": 200,
        "seeds": [1, 2, 3, 4, 5],
        "precision": "fp32",
    }
    return Measured({"plan": plan, "results": results | more})


def test_differences_are_paired_and_no_surer_than_a_row() -> None:
    found = measured({"rank16": 0.90, "cut/global/2": 0.898}).difference("cut/global/2", "rank16", "accuracy")
    assert found is not None
    assert found.mean == pytest.approx(-0.002)
    assert found.high - found.mean == pytest.approx(2.776 * 0.002 / 5**0.5, rel=1e-3)


def test_arms_are_held_against_each_other_on_the_seeds_that_both_have() -> None:
    later = {"far/5": {"rate": 1e-3, "seconds": 50.0, "test": {"accuracy": 0.0, "loss": 9.0}}}
    found = measured({"near": 0.90}, **later)
    assert found.means(("near", "far"), "loss") == [pytest.approx(0.1), 9.0]
    assert found.better("near", "far", "test") == "near"
    assert found.means(("near", "missing"), "loss") == []


def test_not_worse_goes_by_the_margin() -> None:
    near = measured({"rank16": 0.90, "close": 0.895, "far": 0.885})
    assert near.is_not_worse("close", "rank16", "accuracy") is True
    assert near.is_not_worse("far", "rank16", "accuracy") is False
    assert near.is_not_worse("missing", "rank16", "accuracy") is None


@pytest.mark.parametrize(
    ("accuracies", "answer", "truth"),
    [
        ((0.88, 0.90, 0.90, 0.90, 0.90), "does not bind", "does not bind"),
        ((0.70, 0.74, 0.80, 0.90, 0.90), "binds", "binds"),
        ((0.70, 0.74, 0.90, 0.90, 0.95), "does not bind", "binds"),
    ],
)
def test_the_gate_is_held_against_all_ranks(accuracies: tuple[float, ...], answer: str, truth: str) -> None:
    found = measured({f"rank{2 * 2**power}": value for power, value in enumerate(accuracies)})
    gate = found.gate()
    assert gate is not None
    assert (gate.found.answer, gate.truth, gate.is_right) == (answer, truth, answer == truth)
    assert gate.leans_right is None
    right = f"proven {5 * (answer == truth)} right, {5 * (answer != truth)} wrong; leaning 0 right, 0 wrong"
    assert asked(found.gates(4, unseen=True)) == f"{right}; no lean 0; of 5"


def test_where_nothing_is_proven_it_leans() -> None:
    ranks = {f"rank{2 * 2**power}": 0.9 for power in range(5)}
    noise = {1: 0.02, 2: -0.02, 3: 0.02, 4: -0.02, 5: 0.01}
    lower = {
        f"rank8/{seed}": {"rate": 1e-3, "test": {"accuracy": 0.9 + seed / 100 + off, "loss": 0.1}}
        for seed, off in noise.items()
    }
    found = measured({**ranks, "rank4": 0.7}, **lower)
    gate = found.gate()
    assert gate is not None
    assert (gate.is_right, gate.leans_right) == (None, True)
    assert str(gate).startswith("not known; most likely rank does not bind (probability 0.77 by 4 seeds")
    assert asked(found.gates(4, unseen=False)).startswith("proven 0 right, 0 wrong; leaning 5 right")


def test_what_is_missing_is_a_dash() -> None:
    squeezes = {f"squeeze/{seed}": {"seconds": 2.0, "ranks": {"2": [1, 2, 3]}} for seed in (1, 2)}
    lines = rows_of(measured({"rank16": 0.9}, **squeezes))
    assert lines["squeeze / training, CPU time"] == "4.0%"
    assert lines["Spearman of squeezed ranks"] == "1.00"
    assert (
        lines["rank binds: gate by four seeds"]
        == lines["recovered or trained at 2: by validation loss, by test loss"][:1]
        == "–"
    )


def test_memory_is_told_beside_the_sizes_of_what_is_cut(document: Document) -> None:
    found = document(squeeze_memory.main, ["--quick"])["bytes"]
    tiny = SHAPES["tiny-llama"].settings
    assert found["largest module"] == 4 * tiny["hidden_size"] * tiny["intermediate_size"]
    assert found["adapter"] < found["backbone"]
    assert min(found.values()) >= 0
