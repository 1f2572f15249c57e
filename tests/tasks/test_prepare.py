from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

from automl.errors import DataError, ResourceError
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.prepare import load_prepared, prepared_from_json, prepared_to_json, tokenizer_fingerprint
from automl.tasks.quiet import quiet_datasets, single_threaded_tokenizers
from automl.tasks.read import SPLITS


def content(rows: int = 60, word: str = "film") -> str:
    return "".join(json.dumps({"text": f"good {word} {row}", "label": row % 2}) + "\n" for row in range(rows))


def test_preparing_again_finds_the_same_folder(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    task = make_task(settings_for("classification", train=content()))
    first = task.prepare(bert_tokenizer, tmp_path / "cache")
    written = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert task.prepare(bert_tokenizer, tmp_path / "cache") == first
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == written
    assert first.path == tmp_path / "cache" / "data" / first.fingerprint
    assert load_prepared(first.path) == first


def test_nothing_is_left_beside_the_folder(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    prepared = make_task(settings_for("classification", train=content())).prepare(bert_tokenizer, tmp_path / "cache")
    names = sorted(path.name for path in (tmp_path / "cache" / "data").iterdir())
    assert names == [prepared.fingerprint, f"{prepared.fingerprint}.lock"]
    assert not list(Path.cwd().glob("cache-*.arrow"))


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "shares": {"test_share": 0.3},
    "max_length": {"max_length": 5},
    "a text": {"train": content(word="plot")},
    "a row more": {"train": content(61)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_covers(
    change: dict[str, Any], settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = make_task(settings_for("classification", train=content())).prepare(bert_tokenizer, cache)
    settings = settings_for("classification", **({"train": content()} | change))
    assert make_task(settings).prepare(bert_tokenizer, cache).fingerprint != first.fingerprint


def test_what_the_fingerprint_does_not_cover(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = make_task(settings_for("classification", train=content())).prepare(bert_tokenizer, cache)
    moved = settings_for("classification", train=content(), suffix=".json", evaluate_rows=5, metric="mcc")
    assert make_task(moved).prepare(bert_tokenizer, cache) == first


def test_the_fingerprint_of_a_tokenizer(plain_tokenizer: Any, chat_tokenizer: Any, bert_tokenizer: Any) -> None:
    before = tokenizer_fingerprint(plain_tokenizer)
    plain_tokenizer(["a b c"], truncation=True, max_length=2, padding="max_length")  # leaves its state behind
    assert tokenizer_fingerprint(plain_tokenizer) == before
    assert len({before, tokenizer_fingerprint(chat_tokenizer), tokenizer_fingerprint(bert_tokenizer)}) == 3


def test_prepared_survives_json(settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path) -> None:
    prepared = make_task(settings_for("classification", train=content())).prepare(bert_tokenizer, tmp_path / "cache")
    assert prepared_from_json(json.loads(json.dumps(prepared_to_json(prepared))), prepared.path) == prepared


def test_more_rows_than_fit_into_one_chunk(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    task = make_task(settings_for("classification", train=content(2500), validation=content(4), test_share=0.0))
    prepared = task.prepare(bert_tokenizer, tmp_path / "cache")
    rows = task.rows(prepared, "train")
    assert len(rows) == 2500
    assert [rows[place]["labels"] for place in (0, 999, 1000, 1001, 2499, -1)] == [0, 1, 0, 1, 1, 1]
    assert [row["labels"] for row in rows[998:1002]] == [0, 1, 0, 1]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda folder: (folder / "prepared.json").unlink(),
    "half a manifest": lambda folder: (folder / "prepared.json").write_text('{"rows": '),
    "no manifest values": lambda folder: (folder / "prepared.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_folder_without_a_manifest_is_built_again(
    damage: Callable[[Path], Any], settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    task = make_task(settings_for("classification", train=content()))
    first = task.prepare(bert_tokenizer, tmp_path / "cache")
    damage(first.path)
    assert task.prepare(bert_tokenizer, tmp_path / "cache") == first
    assert len(task.rows(first, "train")) == first.rows["train"]


LOSSES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no rows": (lambda split: shutil.rmtree(split), "prepared rows cannot be read"),
    "fewer rows": (
        lambda split: shutil.copytree(split.parent / "validation", split, dirs_exist_ok=True),
        "rows where .* were prepared; delete ",
    ),
    "half a file": (
        lambda split: os.truncate(next(split.glob("*.arrow")), 100),
        "prepared rows cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), LOSSES.values(), ids=LOSSES)
def test_lost_rows_are_noticed(
    damage: Callable[[Path], Any],
    expected: str,
    settings_for: Callable[..., TaskSettings],
    bert_tokenizer: Any,
    tmp_path: Path,
) -> None:
    task = make_task(settings_for("classification", train=content()))
    prepared = task.prepare(bert_tokenizer, tmp_path / "cache")
    damage(prepared.path / "train")
    with pytest.raises(DataError, match=expected):
        task.rows(prepared, "train")


def test_a_cache_that_cannot_be_written(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    task = make_task(settings_for("classification", train=content()))
    with pytest.raises(ResourceError, match=r"data cache .*/cache/data cannot be used: Not a directory"):
        task.prepare(bert_tokenizer, tmp_path / "cache")


def test_progress_bars_and_tokenizer_threads_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    datasets.enable_progress_bars()
    with quiet_datasets(), single_threaded_tokenizers():
        assert datasets.are_progress_bars_disabled()
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert not datasets.are_progress_bars_disabled()
    assert "TOKENIZERS_PARALLELISM" not in os.environ


class Stuck:
    """A tokenizer that never comes back: its process is killed while it holds the lock."""

    def __init__(self, inner: Any, stuck: Event) -> None:
        self._inner = inner
        self._stuck = stuck

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        self._stuck.set()
        time.sleep(600)


def prepare_there(folder: Path, stuck: Event | None, answers: Queue[Any]) -> None:
    """What every process does; the first one is given `stuck`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
    data = DataSettings(kind="files", files={"train": str(folder / "train.jsonl")})
    task = make_task(TaskSettings(type="classification", data=data, metric="accuracy"))
    prepared = task.prepare(Stuck(tokenizer, stuck) if stuck else tokenizer, folder / "cache")
    inode = prepared.path.stat().st_ino
    answers.put((prepared.fingerprint, inode, {split: len(task.rows(prepared, split)) for split in SPLITS}))


@pytest.fixture(scope="module")
def processes() -> Any:
    """A server that has imported everything once and forks quickly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_prepare", "automl.tasks"])
    return context


def test_one_of_many_processes_builds_although_the_first_is_killed(
    tmp_path: Path, bert_tokenizer: Any, processes: Any
) -> None:
    bert_tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "train.jsonl").write_text(content(3000))
    stuck, answers = processes.Event(), processes.Queue()
    victim = processes.Process(target=prepare_there, args=(tmp_path, stuck, answers))
    others = [processes.Process(target=prepare_there, args=(tmp_path, None, answers)) for _ in range(6)]
    try:
        victim.start()
        assert stuck.wait(240)
        for process in others:
            process.start()
        with pytest.raises(Empty):  # all wait for the holder of the lock
            answers.get(timeout=0.5)
        victim.kill()
        found = [answers.get(timeout=240) for _ in others]
    finally:
        for process in (victim, *others):
            process.join(10)
            process.kill()
            process.join()
            process.close()
    # One fingerprint, one folder (built once, never replaced), one number of rows.
    fingerprint, inode, rows = found[0]
    assert found == [(fingerprint, inode, rows)] * 6
    assert sum(rows.values()) == 3000
    left = sorted(path.name for path in (tmp_path / "cache" / "data").iterdir())
    assert left == [fingerprint, f"{fingerprint}.lock"]
