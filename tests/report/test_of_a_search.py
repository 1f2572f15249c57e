"""A whole search leaves a report, key figures in Optuna's dashboard, and a recipe that runs as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from automl.cli.main import main
from automl.space.load import load_space
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from tests.fresh import run_python
from tests.sweep.tiny_world import make_world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The folder of a finished search of two trials."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_sweep(load_space(make_world(folder, trials=2, steps=10)), shared_cache)
    return folder


def document(folder: Path) -> Any:
    return json.loads((folder / "automl-output/tiny/report.json").read_text(encoding="utf-8"))


def test_the_report_lies_beside_the_summary(searched: Path) -> None:
    made = searched / "automl-output" / "tiny"
    summary = json.loads((made / "summary.json").read_text(encoding="utf-8"))
    assert document(searched)["best"] == summary["best"]["number"]
    assert (made / "report.html").stat().st_size < 5_000_000
    assert "Not verified" in (made / "report.md").read_text(encoding="utf-8")


def test_the_dashboard_shows_the_findings(searched: Path) -> None:
    with open_database(f"sqlite:///{searched / 'automl.db'}", create=False) as database:
        study = optuna.load_study(study_name="tiny", storage=database.optuna_storage())
        assert study.user_attrs["evidence"] == "not verified"
        assert study.user_attrs["best_trial"] == str(document(searched)["best"])
        from optuna_dashboard import get_note

        assert "Not verified" in get_note(study)


@pytest.mark.parametrize("part", ["use", "train"])
def test_the_recipe_runs_as_it_stands(searched: Path, part: str) -> None:
    found = document(searched)
    best = found["trials"][found["best"]]
    check = (
        "\ncount = sum(p.numel() for n, p in model.named_parameters() if 'lora_' in n or 'modules_to_save' in n)"
        f"\nassert count == {best['trainable_params']}, count\nprint('RAN')\n"
    )
    ran = run_python("-c", found["recipe"][part] + check)
    assert ran.stdout.endswith("RAN\n"), ran.stderr


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ([], ["tiny-report.html"]),
        (["--output", "night.md"], ["night.md"]),
        (["--output", "page", "--format", "html"], ["page"]),
        (["--output", "all.html", "--format", "all"], ["all.html", "all.json", "all.md"]),
    ],
    ids=["default", "by-ending", "by-format", "all"],
)
def test_the_command_writes_what_was_asked_for(
    searched: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    written: list[str],
) -> None:
    monkeypatch.chdir(searched)
    with pytest.raises(SystemExit) as stop:
        main(["report", "tiny", *arguments])
    assert stop.value.code == 0
    assert [name for name in written if (searched / name).exists()] == written
    assert "Not verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tiny", "--output", "report.pdf"], 2, "'.pdf' is no known ending"),
        (["tiny", "--output", "nowhere/report.html"], 5, "cannot write"),
        (["other"], 3, "no study 'other'"),
    ],
    ids=["ending", "folder", "study"],
)
def test_a_mistake_gets_a_line_and_a_code(
    searched: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(searched)
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    assert stop.value.code == code
    assert said in capsys.readouterr().err
