"""A run that is refused leaves the study as it was, and the advice that comes with it can work."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.errors import AutomlError, DataError, SpaceChangedError
from automl.results.summary import Summary
from automl.space.load import load_space
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from tests.sweep.tiny_world import make_world


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    space = make_world(tmp_path, trials=2, steps=5)
    text = space.read_text(encoding="utf-8")
    text = text.replace("  rank:", "  target: {type: categorical, choices: [qv, mlp]}\n  rank:")
    space.write_text(text.replace("target: qv, ", ""), encoding="utf-8")
    return space


def run(space: Path, *, allow: bool = False) -> Summary:
    return run_sweep(load_space(space), space.parent / "cache", allow_space_change=allow)


def changed(space: Path, old: str, new: str) -> Path:
    text = space.read_text(encoding="utf-8")
    assert old in text
    path = space.with_name("changed.yaml")
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


REFUSED = {
    "other choices": ("[qv, mlp]", "[qv, mlp, all-linear]", "parameter 'target' cannot change"),
    "other scale": ("high: 8, log: true", "high: 8", "parameter 'rank' cannot change"),
    "no such data": ("./data.jsonl", "./dta.jsonl", "data: .*dta.jsonl does not exist"),
    "other metric": ("metric: accuracy", "metric: macro_f1", "is about accuracy, not about macro_f1"),
    "two objectives": ("seed: 3, keep: 2", "seed: 3, keep: 2, also_minimize: seconds", "has one objective, not two"),
}


def test_a_change_that_cannot_work_does_not_lock_out_the_original(space: Path) -> None:
    run(space)
    before = state(space)
    for old, new, reason in REFUSED.values():
        other = changed(space, old, new)
        with pytest.raises(SpaceChangedError, match=reason) as said:
            run(other)
        assert "--allow-space-change" not in str(said.value)
        with pytest.raises(AutomlError):
            run(other, allow=True)
    with pytest.raises(SpaceChangedError, match="continue it with --allow-space-change"):
        run(changed(space, "high: 1.0e-1", "high: 2.0e-1"))
    assert state(space) == before
    assert run(space).counts["COMPLETE"] == 2
    assert run(changed(space, "high: 1.0e-1", "high: 2.0e-1"), allow=True).counts["COMPLETE"] == 2
    assert state(space) != before


# Before, the first file of a study was recorded whatever became of it, and its correction refused.
def test_a_study_whose_first_file_was_refused_is_not_there(space: Path) -> None:
    with pytest.raises(DataError, match=r"dta\.jsonl"):
        run(changed(space, "./data.jsonl", "./dta.jsonl"))
    with open_database(load_space(space).storage_url, create=False) as database:
        assert database.studies() == []
        assert database.optuna_storage().get_all_studies() == []
    assert run(space).counts["COMPLETE"] == 2


def state(space: Path) -> object:
    with open_database(load_space(space).storage_url, create=False) as database:
        row = database.store("tiny").sweep()
        events = database.store("tiny").events()
        (study,) = database.optuna_storage().get_all_studies()
        return row.space_text, row.provenance, row.runs, events, study
