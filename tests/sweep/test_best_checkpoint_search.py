"""A search on labels that follow from nothing: every trial overfits, and is worth what it was before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl.cli.main import main
from automl.errors import SpaceChangedError
from automl.report.recipe import recipe
from automl.results.squeezed import squeeze_of
from automl.results.summary import SUMMARY_MARKDOWN
from automl.space.load import load_space
from automl.storage.invariants import check
from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from automl.storage.verification import latest
from automl.sweep.export import export_trial
from automl.sweep.run import run_sweep
from automl.verify.run import VerifyOptions, verify_study
from tests.verify.test_verified_search import planted

TRIALS = [{"rank": 8, "learning_rate": rate, "weight_decay": 0.0} for rate in (0.03, 0.01)]


def test_a_search_for_the_best_checkpoint(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(tmp_path, TRIALS, steps=60, labels="shuffled")
    path = tmp_path / "space.yaml"
    plain = path.read_text(encoding="utf-8").replace("metric: accuracy", "metric: loss")
    plain = plain.replace("squeeze: false", "squeeze: true")
    path.write_text(plain.replace("keep: 2,", "keep: 2, checkpoint: best,"), encoding="utf-8")
    spec = load_space(path)
    summary = run_sweep(spec, shared_cache)

    with open_database(spec.storage_url, create=False) as database:
        rows = list_trials(database, spec.study)
        curves = {row.number: database.store(spec.study).measurements(row.number) for row in rows}
        assert check(database, spec.study, finished=True, max_trials=2) == []
        for row in rows:
            losses = {item.step: item.metrics["loss"] for item in curves[row.number]}
            assert row.checkpoint is not None
            assert row.value == row.checkpoint.metrics["loss"] == min(losses.values()) == losses[row.checkpoint.step]
        ended = [row for row in rows if row.checkpoint and row.checkpoint.reason.startswith("overfits since step")]
        assert ended
        assert all(row.steps < 60 for row in ended)
        winner = summary.best
        assert winner is not None
        assert winner.checkpoint is not None
        about = json.loads((Path(str(winner.adapter)) / "manifest.json").read_text(encoding="utf-8"))["about"]
        assert (about["step"], about["metric"]["value"]) == (winner.checkpoint.step, winner.value)
        made = recipe(winner.adapter)
        assert made is not None
        assert f"the first {winner.checkpoint.step} of 60 steps, " in made.training
        squeeze = squeeze_of(database, spec.study, winner.number)
        assert squeeze is not None
        assert squeeze.whole.value == pytest.approx(winner.value, abs=1e-5), "the adapter is the best checkpoint's"

        assert winner.checkpoint.step < winner.steps
        exported = export_trial(database, spec, tmp_path / "exported", None, merged=False, check=True)
        assert exported.measured == pytest.approx(winner.value, rel=1e-6)

        assert "saved at most" in summary.early_ends
        assert f"- of these, {summary.early_ends}" in (Path(summary.folder) / SUMMARY_MARKDOWN).read_text("utf-8")
        assert f"at step {winner.checkpoint.step} of {winner.steps}" in (
            Path(summary.folder) / SUMMARY_MARKDOWN
        ).read_text("utf-8")

        verified = verify_study(database, spec, shared_cache, VerifyOptions(seeds=3, squeeze="cuts"))
        assert verified.result is not None
        assert verified.result["selection_optimism"]["step"] == winner.checkpoint.step
        plan = latest(database, spec.study, done=True)
        assert plan is not None
        steps = {arm["name"]: arm.get("steps") for arm in plan.plan["arms"]}
        assert steps[f"trial-{winner.number}"] == winner.checkpoint.step
        assert "default" not in steps or steps["default"] is None

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["trials", spec.study, "--db", spec.storage_url])
    assert "finished: overfits since step" in " ".join(capsys.readouterr().out.split())

    path.write_text(plain, encoding="utf-8")
    with pytest.raises(SpaceChangedError):
        run_sweep(load_space(path), shared_cache)
