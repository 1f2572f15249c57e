import logging
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from automl.errors import CheckpointError
from automl.training.checkpoint import SlotFolder
from automl.training.state import SlotRecord, TrainState
from automl.trial import Measurement
from automl.trial_folders import slot_folder

IDENTITY = {"trial": 3, "seed": 1}


def record(step: int) -> SlotRecord:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=generator)
    return SlotRecord(
        state=TrainState(
            step=step,
            params={"a.weight": weight, "b.weight": weight[:2].clone()},
            moments={"step/a.weight": torch.tensor(float(step)), "exp_avg/a.weight": weight * 0.1},
            dropout=generator.get_state() if step != 25 else None,
            micro_batch=8,
            evaluation_tokens=2048,
            seconds=1.0 / 3.0,
            tokens=step * 100,
        ),
        measurements=tuple(
            Measurement(trial=3, step=s, metrics={"loss": 1.0 / s}, seconds=0.1 * s, tokens=s * 100)
            for s in range(10, step + 1, 10)
        ),
    )


def slot(folder: Path, attempt: int = 1) -> SlotFolder:
    claimed = SlotFolder(folder, attempt=attempt, identity=IDENTITY)
    claimed.claim()
    return claimed


def assert_same(left: SlotRecord | None, right: SlotRecord) -> None:
    assert left is not None
    assert left.measurements == right.measurements
    for name in ("step", "micro_batch", "evaluation_tokens", "seconds", "tokens"):
        assert getattr(left.state, name) == getattr(right.state, name)
    for tensors, others in ((left.state.params, right.state.params), (left.state.moments, right.state.moments)):
        assert set(tensors) == set(others)
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert left.state.dropout is not None
    assert right.state.dropout is not None
    assert torch.equal(left.state.dropout, right.state.dropout)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = slot_folder(tmp_path, 3)
    slot(folder).save(record(10))
    assert_same(slot(folder, attempt=2).load(), record(10))
    assert folder == tmp_path / "slots" / "trial-00003"


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert slot(tmp_path / "s").load() is None


def test_the_last_two_states_are_kept(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    for step in (10, 20, 30):
        files.save(record(step))
    assert sorted(path.name for path in (tmp_path / "s").glob("step-*")) == ["step-00000020", "step-00000030"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    files.save(record(10))
    files.save(record(10))
    assert_same(files.load(), record(10))


def test_files_are_private_and_no_pickle(tmp_path: Path) -> None:
    folder = slot_folder(tmp_path / "out", 1)
    slot(folder).save(record(10))
    for path in [folder.parent, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    names = {path.name for path in (folder / "step-00000010").iterdir()}
    assert names == {"params.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}


def test_an_older_attempt_is_refused_from_the_moment_of_the_claim(tmp_path: Path) -> None:
    zombie = slot(tmp_path / "s", attempt=1)
    zombie.save(record(10))
    successor = slot(tmp_path / "s", attempt=2)
    with pytest.raises(CheckpointError, match="attempt 1 is superseded by attempt 2"):
        zombie.save(record(20))
    with pytest.raises(CheckpointError, match="superseded"):
        slot(tmp_path / "s", attempt=1)
    zombie.remove()
    assert_same(successor.load(), record(10))


def test_the_same_attempt_may_come_back(tmp_path: Path) -> None:
    slot(tmp_path / "s", attempt=2).save(record(10))
    assert_same(slot(tmp_path / "s", attempt=2).load(), record(10))


def test_files_of_another_computation_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slot(tmp_path / "s", attempt=7).save(record(10))
    other = SlotFolder(tmp_path / "s", attempt=1, identity={**IDENTITY, "seed": 2})
    with caplog.at_level(logging.WARNING):
        other.claim()
    assert other.load() is None
    assert "starting it anew" in caplog.text


def test_remove_deletes_the_folder(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    files.save(record(10))
    files.remove()
    assert not (tmp_path / "s").exists()


def damage_by_flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def damage_by_cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


FLIPS = [
    (name, seed)
    for seed in range(5)
    for name in ("params.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
]
CUTS = [
    ("params.safetensors", 0.0),
    ("params.safetensors", 0.5),
    ("optimizer.safetensors", 0.99),
    ("state.json", 0.5),
    ("manifest.json", 0.0),
    ("manifest.json", 0.9),
]


@pytest.mark.parametrize(("name", "seed"), FLIPS)
def test_a_flipped_bit_is_noticed_and_the_state_before_is_used(
    tmp_path: Path, name: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = slot(tmp_path / "s")
    files.save(record(10))
    files.save(record(20))
    damage_by_flip(tmp_path / "s" / "step-00000020" / name, random.Random(seed))
    with caplog.at_level(logging.WARNING):
        assert_same(files.load(), record(10))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("name", "share"), CUTS)
def test_a_truncated_file_is_noticed_and_the_state_before_is_used(tmp_path: Path, name: str, share: float) -> None:
    files = slot(tmp_path / "s")
    files.save(record(10))
    files.save(record(20))
    damage_by_cut(tmp_path / "s" / "step-00000020" / name, share)
    assert_same(files.load(), record(10))


@pytest.mark.parametrize("missing", ["manifest.json", "params.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_noticed(tmp_path: Path, missing: str) -> None:
    files = slot(tmp_path / "s")
    files.save(record(10))
    files.save(record(20))
    (tmp_path / "s" / "step-00000020" / missing).unlink()
    assert_same(files.load(), record(10))


def test_a_file_of_another_state_is_noticed(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    files.save(record(10))
    files.save(record(20))
    older, newer = (tmp_path / "s" / f"step-000000{step}" / "params.safetensors" for step in (10, 20))
    newer.write_bytes(older.read_bytes())
    assert_same(files.load(), record(10))


def test_all_damaged_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    for step in (10, 20):
        files.save(record(step))
        (tmp_path / "s" / f"step-000000{step}" / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="none of its 2 slot files is undamaged"):
        files.load()


def test_saving_after_a_fallback_drops_the_damaged_state(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    for step in (10, 20, 30):
        files.save(record(step))
    (tmp_path / "s" / "step-00000030" / "state.json").unlink()
    files.save(record(25))
    assert sorted(path.name for path in (tmp_path / "s").glob("step-*")) == ["step-00000020", "step-00000025"]


def test_what_a_dead_writer_left_is_ignored_and_swept_away(tmp_path: Path) -> None:
    # The writer dies inside the block of `sealed_folder`, as kill -9 would: no clean-up runs.
    code = (
        "import os, sys; from pathlib import Path; from automl import durable\n"
        "folder = Path(sys.argv[1])\n"
        "with durable.sealed_folder(folder / 'step-00000020', {}) as draft:\n"
        "    durable.write_file(draft / 'params.safetensors', b'half')\n"
        "    os._exit(9)\n"
    )
    files = slot(tmp_path / "s")
    files.save(record(10))
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=False).returncode == 9
    assert list((tmp_path / "s").glob(".draft-*"))
    again = slot(tmp_path / "s", attempt=2)
    assert_same(again.load(), record(10))
    assert not list((tmp_path / "s").glob(".draft-*"))


def test_a_state_that_is_not_finite_cannot_be_written(tmp_path: Path) -> None:
    files = slot(tmp_path / "s")
    bad = SlotRecord(
        state=record(10).state, measurements=(Measurement(trial=3, step=10, metrics={"loss": float("nan")}),)
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.save(bad)
    assert files.load() is None
    assert not list((tmp_path / "s").glob(".draft-*"))
