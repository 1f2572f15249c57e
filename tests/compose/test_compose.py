"""From finished searches to a mixture of their adapters on disk, and what the test rows say of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import automl
from automl.cli.main import main
from automl.compose.found import Composed
from automl.training.export import verify_manifest

Said = tuple[int, str, str]
Run = Callable[..., Said]


@pytest.fixture
def run(world: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the world's folder: code, stdout, stderr."""

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(stop.value.code or 0), said.out, said.err

    return call


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    inputs = tokenizer(["w3 w4 w5 w20", "w9 w10 w30", "w6"], return_tensors="pt", padding=True)
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.fixture(scope="module")
def composed(world: Path) -> Composed:
    """All ways that fit, of all trials; the best mixture is in `mixture`."""
    return automl.open_study("tiny").compose(output=world / "mixture", show_progress=False)


def test_every_way_that_fits_is_measured_and_the_best_is_chosen(composed: Composed) -> None:
    study = automl.open_study("tiny")
    assert {each.name for each in composed.mixtures} >= {
        *("soup", "svd", "ties 0.2", "ties 0.5", "dare_ties 0.2", "dare_ties 0.5")
    }
    assert not any(each.name == "linear" for each in composed.mixtures)
    assert any("not mixed by linear: trials " in note for note in composed.notes)
    assert any("the study has 4 adapters (search.keep: 9), not 5" in note for note in composed.notes)
    assert {each.trials[0]: each.metrics["accuracy"] for each in composed.adapters} == {
        trial.number: pytest.approx(trial.value, abs=1e-6) for trial in study.trials
    }
    assert composed.winner.trials == (study.best.number,)
    best = min(composed.mixtures, key=lambda each: (-each.metrics["accuracy"], each.metrics["loss"]))
    assert composed.chosen == best
    assert composed.rows == 51


def test_the_winner_is_met_on_test_rows(composed: Composed) -> None:
    test = composed.test
    assert test is not None
    assert test.rows == 48
    assert test.difference is not None
    mean, low, high, _ = test.difference
    assert mean == pytest.approx(test.mixture["accuracy"] - test.winner["accuracy"], abs=1e-6)
    assert low <= mean <= high
    assert f"on 48 test rows: accuracy {test.mixture['accuracy']:.4f} against" in composed.headline()


def test_the_mixture_is_a_folder_that_peft_loads_and_that_measures_the_same(composed: Composed, world: Path) -> None:
    about = verify_manifest(world / "mixture")
    assert about["composed"]["trials"] == list(composed.chosen.trials)
    assert about["metrics"] == dict(composed.chosen.metrics)
    tensors = load_file(world / "mixture/adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == composed.chosen.parameters
    heads = {name for name in tensors if ".lora_" not in name}
    own = [
        load_file(Path(trial.adapter or "") / "adapter_model.safetensors") for trial in automl.open_study("tiny").trials
    ]
    chosen = [own[number] for number in composed.chosen.trials]
    assert heads
    for name in heads:
        assert torch.allclose(tensors[name], sum(each[name] for each in chosen) / len(chosen), atol=1e-6), name
    model, tokenizer = automl.load_adapter(world / "mixture")
    assert logits(model, tokenizer).std() > 0.01
    assert set(model.config.id2label.values()) == {"negative", "neutral", "positive"}


def test_a_soup_has_the_mean_of_the_weights(world: Path, run: Run) -> None:
    """Each trial merged by PEFT, their weights averaged by hand, against the soup of two trials of different layers."""
    code, out, err = run("compose", "tiny", "--trials", "0,3", "--how", "soup", "-o", "soup", "--json")
    assert code == 0, err
    assert [each["name"] for each in json.loads(out)["mixtures"]] == ["soup"]
    study = automl.open_study("tiny")
    soup, _ = automl.load_adapter(world / "soup")
    merged = [model.merge_and_unload() for model in (soup, *(study.load_model(number)[0] for number in (0, 3)))]
    mixed, *alone = (dict(model.named_parameters()) for model in merged)
    assert mixed.keys() == alone[0].keys()
    for name, weight in mixed.items():
        assert torch.allclose(weight, (alone[0][name] + alone[1][name]) / 2, atol=1e-6), name


def test_what_a_person_reads(run: Run) -> None:
    code, out, err = run("compose", "tiny", "--trials", "0,1", "--how", "linear,ties", "--density", "0.4")
    assert code == 0, err
    assert "linear" in out
    assert "ties 0.4" in out
    assert "winner" in out
    assert "chosen" in out
    assert "test rows: accuracy" in out
    assert "nothing was written" in out


@pytest.mark.parametrize("trials", [(0, 1), (2, 3)], ids=["ia3", "full"])
def test_adapters_that_are_no_low_rank_updates_are_averaged(world: Path, trials: tuple[int, int]) -> None:
    study, folder = automl.open_study("others"), world / f"mean-{trials[0]}"
    found = study.compose(trials, output=folder, show_progress=False)
    assert [each.name for each in found.mixtures] == ["soup"]
    name = "adapter_model.safetensors" if trials[0] == 0 else "adapter.safetensors"
    ours = load_file(folder / name)
    theirs = [load_file(Path(study.trials[number].adapter or "") / name) for number in trials]
    assert ours.keys() == theirs[0].keys()
    for each, tensor in ours.items():
        assert torch.allclose(tensor, (theirs[0][each] + theirs[1][each]) / 2, atol=1e-6), each
    assert not torch.equal(theirs[0][each], theirs[1][each])
    model, tokenizer = automl.load_adapter(folder)
    alone = [study.load_model(number)[0] for number in trials]
    assert all(not torch.allclose(logits(model, tokenizer), logits(each, tokenizer)) for each in alone)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tiny", "--of", "best:1"], 2, "--of: 1 adapters are no mixture; 2 are the least"),
        (["tiny", "--of", "5"], 2, "--of: '5' is not best:N, as in best:5"),
        (["tiny", "--of", "best:2", "--trials", "0,1"], 2, "--trials: and --of say both which adapters"),
        (["tiny", "--trials", "0,one"], 2, "--trials: 'one' is no number of a trial"),
        (["tiny", "--trials", "0,77"], 1, "trial 77 of study 'tiny' does not exist"),
        (["tiny", "--how", "soap"], 2, "--how: 'soap' is not known; known: soup, svd, ties, dare_ties, linear, fusion"),
        (["tiny", "--density", "2"], 2, "--density: 2 is no share of entries to keep"),
        (["tiny", "--density", "much"], 2, "--density: 'much' is no number"),
        (["tiny", "--output", "model"], 2, "--output: exists already"),
        (["tiny", "--trials", "0,2", "--how", "linear"], 2, "--how linear: trials 0 and 2 have different ranks"),
        (["tiny", "--trials", "0,3", "--how", "linear"], 2, "--how linear: trials 0 and 3 have different layers"),
        (["others", "--trials", "0,2"], 2, "only adapters of one method can be mixed: choose them with --trials"),
        (["others", "--trials", "4,5"], 2, "of method adapter differ in 'adapter_size'; their mean would mean nothing"),
        (["others", "--trials", "0,1", "--how", "ties"], 2, "--how ties: is for low-rank updates"),
        (
            ["others", "--trials", "4,5", "--how", "soup"],
            2,
            "'adapter_size'; their mean would mean nothing; --how fusion",
        ),
        (["others", "--trials", "4,5", "--how", "fusion,ties"], 2, "--how ties: is for low-rank updates"),
        (["others", "--trials", "4,5", "--how", "fusion", "--steps", "0"], 2, "--steps: 0 steps train nothing"),
        (["others", "--trials", "4,0", "--how", "fusion"], 2, "only adapters of one method can be mixed"),
        (["others", "--trials", "4", "--how", "fusion"], 2, "--trials: 4: a mixture needs two different trials"),
        (["tiny", "--trials", "0,1", "--how", "fusion"], 2, "--how fusion: joins adapters of method adapter; trial "),
        (["tiny", "--steps", "5"], 2, "--steps: only fusion trains; add --how fusion"),
        (["others", "--trials", "6,7"], 2, "use_dora cannot be mixed; it can be done for plain LoRA"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    found, _, err = run("-q", "compose", *arguments)
    assert found == code, err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_adapters_that_are_gone_or_damaged(world: Path, run: Run, tmp_path: Path) -> None:
    place = Path(automl.open_study("tiny").trials[3].adapter or "")
    shutil.copytree(place, tmp_path / "copy")
    try:
        (place / "adapter_model.safetensors").write_bytes(b"nothing")
        code, _, err = run("-q", "compose", "tiny", "--trials", "0,3")
        assert code == 1
        assert "adapter_model.safetensors" in err
        assert len(err.strip().splitlines()) == 1
        shutil.rmtree(place)
        code, _, err = run("-q", "compose", "tiny", "--trials", "0,3")
        assert code == 1
        assert "the adapter of trial 3 is not on this machine, and was not stored anywhere else" in err
    finally:
        shutil.copytree(tmp_path / "copy", place, dirs_exist_ok=True)
