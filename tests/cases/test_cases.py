"""Inputs rebuilt from public bug reports: each is read, or refused in a line that says why.

A folder is a case: data, a space file, now and then a second one; `models` holds tiny models with random weights.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest

from automl.cli.main import main
from automl.space.load import load_space
from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from tests.fresh import run_python

CASES = Path(__file__).parent


class Said(NamedTuple):
    """What a command left: its exit code, and everything it showed."""

    code: int
    text: str


Run = Callable[..., Said]


@pytest.fixture
def automl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder of the case that was chosen with `case=`; never a traceback."""
    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str, case: str | None = None) -> Said:
        if case is not None:
            shutil.copytree(CASES / case, tmp_path / case)
            (tmp_path / "models").symlink_to(CASES / "models")
            monkeypatch.chdir(tmp_path / case)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        shown = capfd.readouterr()
        text = shown.out + shown.err
        assert "Traceback" not in text
        assert "internal error" not in text
        return Said(int(stop.value.code or 0), text)

    return run


READ: dict[str, str | None] = {
    "02-semicolon-csv": None,
    "04-json-list-alpaca": None,
    "06-sharegpt-system-column": None,
    "12-role-content-in-conversations": None,
    "14-prompt-completion": None,
    "47-parquet-classlabel": None,
    "60-albert-qv": None,
    "63-deberta-all-linear": "one trial at a time",
    "65-bloom-qv": None,
    "66-falcon-all": None,
    "67-mixtral-qv": "expert",
    "68-mixtral-all-linear": "expert",
    "72-mamba-all-linear": "PEFT cannot adapt",
    "a5-tpe-duplicates": "exhausted|every configuration|all 2 configurations",
    "d8-class-missing-in-validation": None,
}
"""Cases that are searched to the end, and what is said of them."""

REFUSED: dict[str, str] = {
    "05-sharegpt-function-call": "row 1: .* tools",
    "07-alpaca-history-system": "max_length 64 cuts off the response",
    "31-alpaca-empty-output": "bad_rows",
    "35-thinking-template": "think",
    "40-long-text-bert-64-positions": r"128.*64|64.*128",
    "77-bigger-vocab": r"\d+.*\d+",
    "82-adapter-folder-as-model": "adapter",
    "83-bnb-quantised": "quanti",
    "86-target-lm-head": "lm_head",
}
"""Cases that are refused in one line, before anything is trained."""


@pytest.mark.parametrize("case", READ)
def test_it_is_read_and_searched(case: str, automl: Run) -> None:
    found = automl("search", "space.yaml", "--no-verify", case=case)
    assert found.code == 0, found.text
    if (said := READ[case]) is not None:
        assert re.search(said, found.text), found.text


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_a_line(case: str, automl: Run) -> None:
    found = automl("search", "space.yaml", "--no-verify", case=case)
    assert found.code == 2, found.text
    assert re.search(REFUSED[case], found.text), found.text
    assert " started" not in found.text  # nothing was trained


def test_bad_rows_may_be_skipped(automl: Run) -> None:
    automl("validate", "space.yaml", case="31-alpaca-empty-output")
    text = Path("space.yaml").read_text(encoding="utf-8")
    Path("space.yaml").write_text(
        text.replace("data: data.jsonl", "data: data.jsonl, bad_rows: skip"), encoding="utf-8"
    )
    found = automl("search", "space.yaml", "--no-verify")
    assert found.code == 0, found.text
    assert re.search("1 .*row", found.text)


def test_earlier_turns_and_system_texts_are_used_where_there_is_room(automl: Run) -> None:
    automl("validate", "space.yaml", case="07-alpaca-history-system")
    text = Path("space.yaml").read_text(encoding="utf-8")
    Path("space.yaml").write_text(text.replace("max_length: 64", "max_length: 512"), encoding="utf-8")
    found = automl("search", "space.yaml", "--no-verify")
    assert found.code == 0, found.text
    assert "ignored" not in found.text


def test_a_refused_file_leaves_the_original_usable(automl: Run) -> None:
    assert automl("search", "space.yaml", "--no-verify", case="a0b-refused-then-original").code == 0
    refused = automl("search", "space2.yaml", "--no-verify", "--allow-space-change")
    assert refused.code == 2, refused.text
    assert automl("search", "space.yaml", "--no-verify", "--trials", "3").code == 0


def test_a_typo_with_allowance_leaves_the_original_usable(automl: Run) -> None:
    assert automl("search", "space.yaml", "--no-verify", case="a0c-typo-with-allow").code == 0
    assert automl("search", "typo.yaml", "--no-verify", "--allow-space-change").code != 0
    assert automl("search", "space.yaml", "--no-verify", "--trials", "3").code == 0


def test_a_study_of_another_program_is_refused(automl: Run) -> None:
    automl("validate", "space.yaml", case="a2b-foreign-study-maximize")
    study = optuna.create_study(storage="sqlite:///automl.db", study_name="shared", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert automl("db", "init").code == 0
    found = automl("search", "space.yaml", "--no-verify")
    assert found.code in (2, 3), found.text
    assert re.search("'shared'.*(not|another|other)", found.text), found.text


def test_a_warm_start_of_which_nothing_fits_is_named(automl: Run) -> None:
    assert automl("search", "first.yaml", "--no-verify", case="b8-warm-start-other-space").code == 0
    found = automl("search", "space.yaml", "--no-verify")
    assert found.code == 0, found.text
    assert re.search("warm.start.*first|first.*warm.start", found.text), found.text


@pytest.mark.parametrize(
    ("case", "model", "data"),
    [
        ("d0-init-deberta", "../models/deberta", "data.csv"),
        ("d2-init-prompt-completion", "../models/llama-chat", "data.jsonl"),
    ],
)
def test_what_init_writes_is_searched(case: str, model: str, data: str, automl: Run) -> None:
    automl("presets", case=case)
    made = automl("init", model, data, "-o", "made.yaml")
    assert made.code == 0, made.text
    text = Path("made.yaml").read_text(encoding="utf-8").replace("executor: ray", "executor: inline")
    Path("made.yaml").write_text(re.sub(r"(?m)^  (?:epochs|examples): \S+", "  steps: 4", text), encoding="utf-8")
    found = automl("search", "made.yaml", "--no-verify", "--trials", "2")
    assert found.code == 0, found.text


@pytest.mark.parametrize("case", ["c4-export-classifier", "c8-pooler-lost"])
def test_an_exported_classifier_is_what_was_trained(case: str, automl: Run) -> None:
    assert automl("search", "space.yaml", "--no-verify", case=case).code == 0
    exported = automl("export", "space.yaml", "--output", "exported")
    assert exported.code == 0, exported.text
    snippet = _snippet(exported.text)
    spec = load_space(Path("space.yaml"))
    with open_database(spec.storage_url, create=False) as database:
        best = max(row.value or 0.0 for row in list_trials(database, spec.study))
    first, second = (run_python("-c", f"import torch; torch.manual_seed({seed})\n{snippet}{_SCORE}") for seed in (1, 2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout == second.stdout  # nothing is made anew when it is loaded
    assert "LABEL_" not in first.stdout
    assert best > 0


_SCORE = """
import csv, torch
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("exported")
rows = list(csv.DictReader(open("data.csv")))
model.eval()
with torch.no_grad():
    texts = [row["text"] for row in rows]
    out = model(**tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt"))
print([model.config.id2label[int(index)] for index in out.logits.argmax(-1)], out.logits.flatten()[:4].tolist())
"""


def _snippet(text: str) -> str:
    """The lines of Python that the command prints."""
    lines = [line.strip() for line in text.splitlines()]
    first = next(
        index for index, line in enumerate(lines) if line.startswith(("from peft", "from transformers", "import "))
    )
    last = max(index for index, line in enumerate(lines) if re.match(r"(model|tokenizer|from|import)\b", line))
    return "\n".join(lines[first : last + 1]) + "\n"
