from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from automl.errors import CheckpointError, DataError, ResourceError
from automl.training.host import SoloHost, build_solo_host
from automl.training.runtime import HostSettings
from automl.trial import Measurement, StopReason, TrialFailure, TrialSpec
from tests.fresh import run_python
from tests.training.training_cases import BadMetric, FailsAt, SmallMemory, curve, run, runtime_with, trial_spec

WEIGHTS_OF_TRIAL_0 = "adapters/trial-00000/adapter_model.safetensors"


def host_in(settings: HostSettings, output: str, *, wrap: object = None, capacity: int = 1) -> SoloHost:
    settings = replace(settings, output=output, capacity=capacity)
    return SoloHost(settings, runtime_with(settings, wrap))


def advance_to_the_end(host: SoloHost) -> list[Measurement]:
    found: list[Measurement] = []
    while news := host.advance():
        found += [item for item in news if isinstance(item, Measurement)]
        assert all(isinstance(item, Measurement) for item in news), news
    return found


def only_failure(news: Sequence[Measurement | TrialFailure]) -> TrialFailure:
    (failure,) = news
    assert isinstance(failure, TrialFailure)
    return failure


def slots(output: str) -> list[str]:
    return sorted(path.name for path in (Path(output) / "slots").glob("*"))


def test_trains_a_trial_to_its_end(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    assert host.open(trial_spec(3)) == ()
    assert slots(output) == ["trial-00003"]
    measurements = advance_to_the_end(host)
    assert curve(measurements) == curve(run(runtime_with(bert), trial_spec(3)))
    assert [item.adapter for item in measurements[:-1]] == [None, None]
    assert measurements[-1].adapter == str(Path(output) / "adapters" / "trial-00003")
    assert (Path(output) / "adapters" / "trial-00003" / "adapter_model.safetensors").is_file()
    assert host.advance() == ()
    host.close(3)
    assert slots(output) == []


def test_a_returned_measurement_is_in_the_slot_file(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec())
    returned = [*host.advance(), *host.advance()]
    # The process is gone: nothing but the disk is left.
    again = host_in(bert, output)
    assert list(again.open(trial_spec(attempt=2))) == returned
    rest = advance_to_the_end(again)
    assert curve([*returned, *rest]) == curve(run(runtime_with(bert), trial_spec()))
    assert rest[-1].seconds > returned[-1].seconds


def test_a_finished_trial_that_was_not_acknowledged_is_told_again(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec())
    measurements = advance_to_the_end(host)
    again = host_in(bert, output)
    told = again.open(trial_spec(attempt=2))
    assert curve(told) == curve(measurements)
    assert told[-1] == measurements[-1]  # the earlier ones come without their importances
    assert measurements[-1].adapter is not None
    assert again.advance() == ()


def test_a_fresh_process_continues_bit_for_bit(bert: HostSettings, output: str, tmp_path: Path) -> None:
    spec = trial_spec(dropout=0.2)
    host = host_in(bert, output)
    host.open(spec)
    first = list(host.advance())
    settings = tmp_path / "settings.pickle"
    settings.write_bytes(pickle.dumps((replace(bert, output=output), replace(spec, attempt=2))))
    code = (
        "import json, pickle, sys\n"
        "from automl.training.host import build_solo_host\n"
        "settings, spec = pickle.load(open(sys.argv[1], 'rb'))\n"
        "host = build_solo_host(settings)\n"
        "found = list(host.open(spec))\n"
        "while news := host.advance(): found += news\n"
        "print(json.dumps([[item.step, dict(item.metrics), item.tokens] for item in found]))\n"
    )
    answer = run_python("-c", code, settings)
    assert answer.returncode == 0, answer.stderr
    undisturbed = curve(run(runtime_with(bert), spec))
    assert [tuple(item) for item in json.loads(answer.stdout)] == undisturbed
    assert curve(first) == undisturbed[:1]


def test_a_checkpoint_has_no_metrics_and_is_continued_like_a_measurement(bert: HostSettings, output: str) -> None:
    spec = trial_spec(dropout=0.2)
    saved = replace(spec, checkpoint_every=3)
    host = host_in(bert, output)
    host.open(saved)
    first = list(host.advance())
    assert [(item.step, item.metrics) for item in first if isinstance(item, Measurement)] == [(3, {})]
    again = host_in(bert, output)
    told = again.open(replace(saved, attempt=2))
    whole = [*told, *advance_to_the_end(again)]
    assert [item.step for item in whole] == [3, 4, 6, 8, 9, 12]
    measured = [item for item in whole if item.metrics]
    assert curve(measured) == curve(run(runtime_with(bert), spec))


def test_a_parked_trial_continues_where_it_was(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec(0))
    first = list(host.advance())
    host.park(0)
    assert slots(output) == ["trial-00000"]
    host.open(trial_spec(1))
    host.advance()
    host.park(1)
    assert list(host.open(trial_spec(0, attempt=2))) == first
    assert curve([*first, *advance_to_the_end(host)]) == curve(run(runtime_with(bert), trial_spec(0)))


def test_closing_a_parked_or_unknown_trial_deletes_its_slot_file(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec(0))
    host.advance()
    host.shutdown()
    other = host_in(bert, output)
    other.close(0)
    other.close(77)
    assert slots(output) == []


def test_residents_take_turns_and_do_not_disturb_each_other(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output, capacity=3)
    specs = [trial_spec(0), trial_spec(1, rank=8, target="qv"), trial_spec(2, dropout=0.0, batch_size=4)]
    for spec in specs:
        host.open(spec)
    measurements = advance_to_the_end(host)
    assert [item.step for item in measurements] == [4, 4, 4, 8, 8, 8, 12, 12, 12]
    for spec in specs:
        own = [item for item in measurements if item.trial == spec.number]
        assert curve(own) == curve(run(runtime_with(bert), spec))


def test_a_full_host_opens_nothing_more(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    assert host.capacity == 1
    host.open(trial_spec(0))
    with pytest.raises(ValueError, match="cannot open trial 1: all 1 slots"):
        host.open(trial_spec(1))
    host.open(trial_spec(0, attempt=2))


def refuse(task: object) -> object:
    return FailsAt(task, step=6, loss=DataError("rows.jsonl: row 17: bad"))  # type: ignore[arg-type]


FAILURES: dict[str, tuple[Callable[..., object], StopReason, int, str]] = {
    "nan-loss": (partial(FailsAt, step=6, loss=math.nan), StopReason.DIVERGED, 5, "training loss is nan at step 6"),
    "inf-loss": (partial(FailsAt, step=6, loss=math.inf), StopReason.DIVERGED, 5, "training loss is inf at step 6"),
    "nan-metric": (partial(BadMetric, value=math.nan), StopReason.DIVERGED, 4, "loss is nan at step 4"),
    "memory": (partial(SmallMemory, most=0), StopReason.OOM, 0, "does not fit into memory"),
    "data": (refuse, StopReason.ERROR, 5, "rows.jsonl: row 17: bad"),
    "exception": (partial(FailsAt, step=6, loss=KeyError("gone")), StopReason.ERROR, 5, "KeyError: 'gone'"),
    "none": (partial(BadMetric, value=None), StopReason.ERROR, 4, "TypeError"),
    "text": (partial(BadMetric, value="0.7"), StopReason.ERROR, 4, "TypeError"),
    "complex": (partial(BadMetric, value=1j), StopReason.ERROR, 4, "TypeError"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_trial_is_data_and_is_closed(bert: HostSettings, output: str, case: str) -> None:
    wrap, reason, step, message = FAILURES[case]
    host = host_in(bert, output, wrap=wrap)
    host.open(trial_spec(5))
    news = host.advance()
    failure = only_failure(news if isinstance(news[0], TrialFailure) else host.advance())
    assert (failure.trial, failure.reason, failure.step) == (5, reason, step)
    assert message in failure.message
    assert ("Traceback" in failure.message) == (reason is StopReason.ERROR)
    assert host.advance() == ()
    assert slots(output) == []
    host.open(trial_spec(6))  # the slot is free again


def test_a_failed_neighbour_changes_nothing(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output, capacity=2)
    host.open(trial_spec(0))
    host.open(trial_spec(1, target="nonsense"))
    news = [item for _ in range(4) for item in host.advance()]
    failure = next(item for item in news if isinstance(item, TrialFailure))
    assert (failure.trial, failure.reason) == (1, StopReason.ERROR)
    assert "unknown target set 'nonsense'" in failure.message
    own = [item for item in news if isinstance(item, Measurement)]
    assert curve(own) == curve(run(runtime_with(bert), trial_spec(0)))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interruptions_pass_and_leave_the_slot_file(bert: HostSettings, output: str, stop: type[BaseException]) -> None:
    host = host_in(bert, output, wrap=partial(FailsAt, step=6, loss=stop()))
    host.open(trial_spec())
    first = list(host.advance())
    with pytest.raises(stop):
        host.advance()
    host.shutdown()
    assert list(host_in(bert, output).open(trial_spec(attempt=2))) == first


def test_a_trial_whose_files_are_all_damaged_fails_and_says_why(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec())
    host.advance()
    host.shutdown()
    for state in Path(output).glob("slots/*/step-*/state.json"):
        state.write_bytes(b"{")
    again = host_in(bert, output)
    assert again.open(trial_spec(attempt=2)) == ()
    failure = only_failure(again.advance())
    assert failure.reason is StopReason.ERROR
    assert "none of its 1 slot files is undamaged" in failure.message


def test_a_damaged_newest_file_costs_one_interval(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec())
    first = [*host.advance(), *host.advance()]
    host.shutdown()
    (Path(output) / "slots/trial-00000/step-00000008/params.safetensors").write_bytes(b"")
    again = host_in(bert, output)
    assert list(again.open(trial_spec(attempt=2))) == first[:1]
    assert curve([*first[:1], *advance_to_the_end(again)]) == curve(run(runtime_with(bert), trial_spec()))


def test_a_worker_that_comes_back_late_is_refused_and_deletes_nothing(bert: HostSettings, output: str) -> None:
    zombie = host_in(bert, output)
    zombie.open(trial_spec(attempt=1))
    successor = host_in(bert, output)
    successor.open(trial_spec(attempt=2))
    first = list(successor.advance())
    with pytest.raises(CheckpointError, match="superseded by attempt 2"):
        zombie.advance()
    zombie.close(0)
    with pytest.raises(CheckpointError, match="superseded"):
        zombie.open(trial_spec(attempt=1))
    zombie.close(0)
    assert curve([*first, *advance_to_the_end(successor)]) == curve(run(runtime_with(bert), trial_spec()))


def test_files_of_another_study_under_the_same_number_are_not_continued(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    host.open(trial_spec(attempt=4))
    host.advance()
    host.shutdown()
    changed: TrialSpec = trial_spec(learning_rate=1e-3)
    again = host_in(bert, output)
    assert again.open(changed) == ()
    assert curve(advance_to_the_end(again)) == curve(run(runtime_with(bert), changed))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("SKIP(no root): cannot mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


@pytest.mark.parametrize("filled_before", ["a state", "the adapter"])
def test_a_full_disk_is_not_the_trials_fault(bert: HostSettings, small_disk: Path, filled_before: str) -> None:
    output = str(small_disk / "out")
    host = host_in(bert, output)
    host.open(trial_spec())
    first = [item for _ in range(1 if filled_before == "a state" else 2) for item in host.advance()]
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    for _ in range(2):  # the second try comes to the same step
        with pytest.raises(ResourceError, match="cannot write: No space left on device"):
            host.advance()
    assert not list(Path(output).glob("adapters/trial-*"))
    host.shutdown()
    filler.unlink()
    again = host_in(bert, output)
    assert list(again.open(trial_spec(attempt=2))) == first
    assert curve([*first, *advance_to_the_end(again)]) == curve(run(runtime_with(bert), trial_spec()))
    assert not list(Path(output).rglob(".draft-*"))


def test_baseline_of_a_classifier_is_the_majority_class(bert: HostSettings, output: str) -> None:
    host = host_in(bert, output)
    assert host.baseline() == bert.prepared.baseline
    assert host.baseline()["accuracy"] < 0.6


def test_baseline_of_a_text_model_is_the_untrained_model(llama: HostSettings, output: str) -> None:
    host = host_in(llama, output)
    host.open(trial_spec())
    host.advance()
    runtime = runtime_with(llama)
    expected = runtime.evaluate(runtime.model, runtime.evaluation_rows, runtime.evaluation_tokens)
    assert dict(host.baseline()) == expected
    assert advance_to_the_end(host)[-1].metrics["loss"] < expected["loss"]


def test_build_solo_host_loads_what_the_settings_name(llama: HostSettings, output: str) -> None:
    host = build_solo_host(replace(llama, output=output, device="auto", capacity=2))
    assert host.capacity == 2
    host.open(trial_spec(steps=2, evaluate_every=2))
    assert len(advance_to_the_end(host)) == 1
    host.shutdown()


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_the_best_checkpoint_is_gone_back_to_and_exported(bert: HostSettings, output: str, method: str) -> None:
    """At this rate the model gets worse again; the adapter is that of a training that ends where it was best."""
    spec = trial_spec(steps=12, evaluate_every=2, learning_rate=0.5, method=method, schedule="constant")
    host = host_in(bert, output)
    host.open(replace(spec, best_by="loss"))
    found = advance_to_the_end(host)
    best, losses = found[-1].best, {item.step: item.metrics["loss"] for item in found}
    assert best is not None
    assert best.step == min(losses, key=lambda step: losses[step]) < 12
    assert best.metrics["loss"] == losses[best.step]
    about = json.loads((Path(output) / "adapters" / "trial-00000" / "manifest.json").read_text())["about"]
    assert (about["step"], about["metric"]["value"]) == (best.step, best.metrics["accuracy"])

    short = host_in(bert, f"{output}-short")
    short.open(replace(spec, stop_after=best.step))
    assert [item.step for item in advance_to_the_end(short)] == [step for step in losses if step <= best.step]
    adapters = [load_file(Path(f"{output}{end}") / WEIGHTS_OF_TRIAL_0) for end in ("", "-short")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_a_trial_that_ended_itself_is_over_for_the_next_host_too(bert: HostSettings, output: str) -> None:
    spec = trial_spec(steps=24, evaluate_every=2, learning_rate=1e-12)
    ending = replace(spec, best_by="loss", early_stopping=True)
    found: list[Measurement] = []
    while not found or found[-1].best is None:  # every measurement is made by a host of its own
        host = host_in(bert, output)
        told = host.open(replace(ending, attempt=len(found) + 1))
        assert len(told) == len(found)
        found = [*told, *(item for item in host.advance() if isinstance(item, Measurement))]
    assert found[-1].step < 24
    assert found[-1].best is not None
    assert found[-1].best.reason.startswith("flat since step ")
    assert found[-1].adapter is not None
    again = host_in(bert, output)
    assert again.open(replace(ending, attempt=99))[-1] == found[-1]
    assert again.advance() == ()
