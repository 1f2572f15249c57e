"""Models, tokenizers and spaces that do not fit are refused in one line by plan and search, if it can by validate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from automl.errors import AutomlError, ConfigError, ModelError
from automl.models.folder import read_config
from automl.setup.fitness import check_inputs, model_remarks
from automl.setup.prepare import Inputs, prepare
from automl.setup.starter import starting_space
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from tests.architectures import FURTHER, VOCABULARY, save_tiny, tiny_tokenizer
from tests.sweep.tiny_world import make_world


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a tiny BERT of 40 positions, data, and a space file that a search would take."""
    return make_world(tmp_path, trials=2, steps=10)


def changed(space: Path, *changes: tuple[str, str]) -> SweepSpec:
    text = space.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    space.write_text(text)
    return load_space(space)


def prepared(spec: SweepSpec, tmp_path: Path) -> Inputs:
    return prepare(spec, tmp_path / "cache")


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def one_line(error: AutomlError) -> str:
    text = str(error)
    assert "\n" not in text.strip()
    return text


class TestLength:
    def test_more_tokens_than_positions(self, world: Path, tmp_path: Path) -> None:
        spec = changed(world, ("max_length: 12", "max_length: 41"))
        for refuse in (model_remarks, lambda spec: prepared(spec, tmp_path)):
            with pytest.raises(
                ConfigError, match=r"max_length: 41 is above the 40 positions of the model \(bert\)"
            ) as found:
                refuse(spec)
            one_line(found.value)

    def test_a_study_that_has_begun_goes_on(self, world: Path, tmp_path: Path) -> None:
        """It was accepted with texts that are short enough."""
        spec = changed(world, ("max_length: 12", "max_length: 41"))
        assert prepare(spec, tmp_path / "cache", has_trials=True).prepared.longest <= 40

    def test_as_many_as_there_are(self, world: Path, tmp_path: Path) -> None:
        spec = changed(world, ("max_length: 12", "max_length: 40"))
        assert model_remarks(spec) == []
        assert not [line for line in prepared(spec, tmp_path).advice if "max_length" in line]

    def test_beyond_what_rotary_positions_were_made_for(self, world: Path, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "model")
        save_tiny(tmp_path / "model", "llama")
        edit(tmp_path / "model" / "config.json", max_position_embeddings=32)
        spec = changed(world, ("max_length: 12", "max_length: 33"))
        (line,) = model_remarks(spec)
        assert line.startswith("max_length: 33 is above the 32 tokens that the model (llama) was made for")
        assert line in prepared(spec, tmp_path).advice

    def test_a_model_that_is_elsewhere_is_not_looked_at(self, world: Path, tmp_path: Path) -> None:
        spec = changed(world, ("max_length: 12", "max_length: 41"))
        shutil.rmtree(tmp_path / "model")
        assert model_remarks(spec) == []


class TestVirtualTokens:
    """On a BERT of 40 positions, with texts of 12 tokens at most."""

    @pytest.mark.parametrize(
        ("method", "own", "message"),
        [
            ("prefix", "virtual_tokens: {type: int, low: 4, high: 8}", r"prefix before the layers of BertForSequence"),
            (
                "p-tuning",
                "virtual_tokens: auto",
                r"virtual_tokens: 128 and max_length 12 are above the 40 positions of the model \(bert\)",
            ),
            ("prompt", "prompt_text: {type: categorical, choices: [w3, '  ']}", r"prompt_text '  ' has no tokens"),
        ],
    )
    def test_what_cannot_be(self, world: Path, tmp_path: Path, method: str, own: str, message: str) -> None:
        spec = self.spec(world, method, own)
        with pytest.raises(ConfigError, match=message) as found:
            prepared(spec, tmp_path)
        one_line(found.value)

    def test_too_many_are_known_from_the_configuration_alone(self, world: Path) -> None:
        said = r"virtual_tokens: 29 and max_length 12 are above the 40 positions of the model \(bert\)"
        with pytest.raises(ConfigError, match=said) as found:
            model_remarks(self.spec(world, "prompt", "virtual_tokens: {type: int, low: 4, high: 29}"))
        one_line(found.value)

    def test_as_many_as_fit(self, world: Path, tmp_path: Path) -> None:
        spec = self.spec(world, "prompt", "virtual_tokens: {type: int, low: 4, high: 28}")
        assert "cannot be packed" in prepared(spec, tmp_path).obstacle
        assert model_remarks(spec) == []

    def spec(self, world: Path, method: str, own: str) -> SweepSpec:
        rank = "rank: {type: int, low: 1, high: 8, log: true}"
        return changed(world, (rank, own), ("target: qv", f"method: {method}"))


class TestQuantised:
    """What is known only when the model is looked at: that it is stored in 4 bits."""

    @pytest.mark.parametrize(
        ("own", "message"),
        [
            ("method: full", "method: 'full' needs whole weights of the model, which quantization leaves in few bits"),
            (
                "init: olora",
                "init: 'olora' needs the whole weights, which quantization leaves in few bits; use default",
            ),
        ],
    )
    def test_what_needs_whole_weights(self, world: Path, tmp_path: Path, own: str, message: str) -> None:
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        held = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        edit(tmp_path / "model" / "config.json", **config, quantization_config=held)
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        name = next(name for name in tensors if name.endswith("query.weight"))
        beside = {f"{name}.quant_state.bitsandbytes__nf4": tensors[name].clone()}
        save_file({**tensors, **beside}, tmp_path / "model" / "model.safetensors")
        rank = "rank: {type: int, low: 1, high: 8, log: true}"
        spec = changed(world, ("target: qv", own), (rank, ""))
        with pytest.raises(ConfigError, match=message) as found:
            prepared(spec, tmp_path)
        one_line(found.value)


class TestInputs:
    """Trials that start from directions of their layers' inputs, 32 wide."""

    def spec(self, world: Path, high: int) -> SweepSpec:
        return changed(
            world, ("low: 1, high: 8, log", f"low: 1, high: {high}, log"), ("target: qv", "target: qv, init: eva")
        )

    def test_more_than_features(self, world: Path, tmp_path: Path) -> None:
        said = r"rank: 33 is above the 32 inputs of bert\.encoder\.layer\.0\.attention\.self\.query, and init eva needs"
        with pytest.raises(ConfigError, match=said) as found:
            prepared(self.spec(world, 33), tmp_path)
        one_line(found.value)

    def test_more_than_tokens(self, world: Path, tmp_path: Path) -> None:
        spec = self.spec(world, 32)
        inputs = prepared(spec, tmp_path)
        layers = inputs.derive.layers("qv")
        for labels, few in ((0, 4), ([-100] * 6 + [1] * 2, 16)):
            row = {"input_ids": [1] * 8, "labels": labels}
            check_inputs(spec, inputs.space, layers, [row] * (few + 1))
            with pytest.raises(ConfigError, match="rank: 32 is above the tokens of the training rows, less one"):
                check_inputs(spec, inputs.space, layers, [row] * few)


class TestVocabulary:
    def bigger(self, folder: Path) -> None:
        """A tokenizer with one word more, as `add_tokens` without resizing leaves it."""
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<|ticket|>"])
        tokenizer.save_pretrained(folder)
        assert len(tokenizer) == VOCABULARY + 1

    def test_a_token_in_the_data_that_the_model_does_not_know(self, world: Path, tmp_path: Path) -> None:
        self.bigger(tmp_path / "model")
        (rows,) = [file for file in tmp_path.iterdir() if file.suffix in (".csv", ".jsonl")]
        rows.write_text(rows.read_text().replace("w5 ", "<|ticket|> "))
        assert "<|ticket|>" in rows.read_text()
        sizes = f"has {VOCABULARY + 1} tokens, the model {VOCABULARY} embeddings"
        with pytest.raises(ModelError, match=rf"{sizes}: '<\|ticket\|>' \(id {VOCABULARY}\) has none") as found:
            prepared(load_space(world), tmp_path)
        one_line(found.value)

    def test_one_that_no_text_needs(self, world: Path, tmp_path: Path) -> None:
        """As in Gemma 3 1B, whose tokenizer has one token for images more than there are embeddings."""
        self.bigger(tmp_path / "model")
        (line,) = [line for line in prepared(load_space(world), tmp_path).advice if "embeddings" in line]
        assert f"has {VOCABULARY + 1} tokens, the model {VOCABULARY} embeddings; no text needs the others" in line

    def test_padding_that_the_model_does_not_know(self, world: Path, tmp_path: Path) -> None:
        tiny_tokenizer(pad_token="<pad>").save_pretrained(tmp_path / "model")
        with pytest.raises(ModelError, match=rf"'<pad>' \(id {VOCABULARY}\) has none"):
            prepared(load_space(world), tmp_path)


class TestConstraints:
    def limited(self, world: Path, most: int) -> SweepSpec:
        return changed(world, ("search:", f"constraints:\n  - trainable_params <= {most}\nsearch:"))

    def test_fewer_parameters_than_the_smallest_configuration_has(self, world: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="constraints: no configuration of the space satisfies them on this mod"):
            prepared(self.limited(world, 10), tmp_path)

    def test_as_many_as_the_smallest_has(self, world: Path, tmp_path: Path) -> None:
        smallest = 2 * 2 * (32 + 32) + 32 * 3 + 3  # rank 1 of query and value in two layers, and the head
        prepared(self.limited(world, smallest), tmp_path)
        with pytest.raises(ConfigError):
            prepared(changed(world, (f"<= {smallest}", f"<= {smallest - 1}")), tmp_path)


class TestEndTokens:
    """Classifiers of T5 and BART look for it; `</s>` has the id 2 in the tiny tokenizer, which adds none by itself."""

    def texts(self, world: Path, tmp_path: Path, end: str, spelled_out: str = "") -> SweepSpec:
        shutil.rmtree(tmp_path / "model")
        save_tiny(tmp_path / "model", "t5")
        tiny_tokenizer(eos_token="</s>").save_pretrained(tmp_path / "model")
        edit(tmp_path / "model" / "config.json", eos_token_id=2)
        words = [f"w{3 + number % 9} w{3 + number}{spelled_out * (number == 30)}{end}" for number in range(60)]
        rows = [{"text": word, "label": "ab"[number % 2]} for number, word in enumerate(words)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_space(world)

    def test_one_in_every_text(self, world: Path, tmp_path: Path) -> None:
        prepared(self.texts(world, tmp_path, " </s>"), tmp_path)

    def test_a_text_that_spells_it_out(self, world: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"'t5' .* has 2, others 1; take it out of the text") as found:
            prepared(self.texts(world, tmp_path, " </s>", " </s>"), tmp_path)
        one_line(found.value)

    def test_a_tokenizer_that_adds_none(self, world: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"'t5' .* has 0; its tokenizer should add one"):
            prepared(self.texts(world, tmp_path, ""), tmp_path)


def adapter(folder: Path, **config: object) -> None:
    """The folder becomes one of an adapter, as PEFT leaves it."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def ours(folder: Path) -> None:
    """An adapter as this project leaves it: with the configuration that names its classes."""
    config = (folder / "config.json").read_bytes()
    adapter(folder, peft_type="LORA", base_model_name_or_path="./bert")
    (folder / "config.json").write_bytes(config)


def without_config(folder: Path) -> None:
    adapter(folder)
    (folder / "adapter_config.json").unlink()


def beside_weights(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/other"}')


def in_a_checkpoint(folder: Path) -> None:
    shutil.move(folder, folder.with_name("moved"))
    shutil.move(folder.with_name("moved"), folder / "checkpoint-500")


def with_card(folder: Path) -> None:
    quantised(quant_method="gptq", bits=4)(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model:\n- org/tiny-bert\n---\n# Tiny\n")


def with_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.intermediate.dense.qweight"] = next(iter(weights.values())).clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def quantised(key: str = "quantization_config", **marker: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **{key: marker})


REFUSED: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "lora": (
        lambda folder: adapter(folder, peft_type="LORA", base_model_name_or_path="org/base"),
        r"this is a LoRA adapter of org/base: name org/base as the model",
    ),
    "ours": (ours, r"this is a LoRA adapter of \./bert: name \./bert as the model"),
    "prompt-tuning": (
        lambda folder: adapter(folder, peft_type="PROMPT_TUNING", base_model_name_or_path="org/base"),
        r"this is a PROMPT_TUNING adapter of org/base: name org/base",
    ),
    "no-base": (
        lambda folder: adapter(folder, peft_type="LORA", base_model_name_or_path=None),
        r"this is a LoRA adapter and no model; name the model it was trained on",
    ),
    "no-adapter-config": (without_config, r"this is a PEFT adapter without its adapter_config\.json"),
    "both": (beside_weights, r"holds a model and, in adapter_config\.json, an adapter"),
    "checkpoint": (in_a_checkpoint, r"config\.json is missing; there is a model in 'checkpoint-500' below it"),
    "bnb-by-name": (
        quantised(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        r"by its config\.json \(bitsandbytes, 4 bit\), but its tensors are not quantised: take quantization_config out",
    ),
    "bnb-of-another-kind": (
        quantised(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="af4"),
        r"is a quantised checkpoint \(bitsandbytes, 4 bit\); .* name the one it was made from",
    ),
    "gptq-card": (with_card, r"\(gptq, 4 bit\); .* name org/tiny-bert, from which it was made"),
    "awq": (quantised(quant_method="awq", bits=4), r"quantised checkpoint \(awq, 4 bit\)"),
    "compressed": (quantised(quant_method="compressed-tensors"), r"quantised checkpoint \(compressed-tensors\)"),
    "fp8": (quantised(quant_method="fp8", fmt="e4m3"), r"quantised checkpoint \(fp8\)"),
    "mlx": (quantised("quantization", group_size=64, bits=4), r"quantised checkpoint \(method unknown, 4 bit\)"),
    "autogptq": (
        lambda folder: (folder / "quantize_config.json").write_text("{}") and None,
        r"quantised checkpoint \(as quantize_config\.json says\)",
    ),
    "tensors": (with_tensors, r"quantised checkpoint \(as its tensors say\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_in_full_precision(case: str, world: Path, tmp_path: Path) -> None:
    spoil, message = REFUSED[case]
    spoil(tmp_path / "model")
    spec = load_space(world)
    with pytest.raises(ModelError, match=message) as found:
        prepared(spec, tmp_path)
    one_line(found.value)
    if case not in ("tensors", "bnb-by-name"):  # validate reads no weights
        with pytest.raises(ConfigError, match=message):
            model_remarks(spec)


def test_a_folder_of_sentence_transformers_is_a_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    (folder / "modules.json").write_text('[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    assert read_config(folder)["model_type"] == "bert"


def test_validate_refuses_without_importing_torch(world: Path) -> None:
    changed(world, ("max_length: 12", "max_length: 41"))
    code = (
        "import sys; from automl.cli.main import main\n"
        "try: main(['validate', sys.argv[1]])\n"
        "finally: print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(world)], capture_output=True, text=True, check=False)
    assert "41 is above the 40 positions" in answer.stderr, answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout.strip().endswith("[]")
    assert answer.returncode == 2


def sets_in(text: str) -> Any:
    line = next(line for line in text.splitlines() if line.startswith("  target:"))
    return line[line.index("choices: [") + len("choices: [") : line.index("]")].split(", ")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deberta-v2", ["all-linear", "qv", "attention", "mlp"]),
        ("xlnet", ["all-linear", "mlp"]),
        ("mixtral", ["all-linear", "qv", "attention"]),
        ("mamba", ["all-linear"]),
    ],
)
def test_init_writes_only_sets_that_the_model_has(
    name: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModel

    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    AutoModel.from_config(AutoConfig.for_model(name, **FURTHER[name].settings)).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Path("rows.jsonl").write_text("".join(f'{{"text": "w{number + 5} w7"}}\n' for number in range(40)))
    task = None if name in ("mamba", "mixtral") else "classification"
    if task:
        Path("rows.jsonl").write_text(
            "".join(f'{{"text": "w{number + 5} w7", "label": "{number % 2}"}}\n' for number in range(40))
        )
    assert sets_in(starting_space("./model", "./rows.jsonl", task_type=task, study=None).text) == expected


def test_auto_searches_only_sets_that_the_model_has(world: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    shutil.rmtree(tmp_path / "model")
    AutoModel.from_config(AutoConfig.for_model("xlnet", **FURTHER["xlnet"].settings)).save_pretrained(
        tmp_path / "model"
    )
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    spec = changed(world, ("target: qv, ", ""), ("space:", "space:\n  target: auto"))
    inputs = prepared(spec, tmp_path)
    (target,) = [parameter for parameter in inputs.space.parameters if parameter.name == "target"]
    assert target.choices == ("all-linear", "mlp")  # type: ignore[union-attr]
    assert any("of the model's parameters stay frozen" in line for line in inputs.advice)


@pytest.mark.parametrize(("files", "message"), [(None, "{0} is no folder"), ((), "{0} holds no adapter")])
def test_the_folder_of_the_adapter_that_a_search_begins_with_is_looked_for(
    world: Path, tmp_path: Path, files: tuple[str, ...] | None, message: str
) -> None:
    if files is not None:
        (tmp_path / "before").mkdir()
    model = "model: ./model"
    spec = changed(world, (model, "model: {folder: ./model, adapter: ./before}"))
    with pytest.raises(ConfigError) as refused:
        model_remarks(spec)
    assert f"model.adapter: {message.format(tmp_path / 'before')}" in one_line(refused.value)


def test_an_adapter_as_peft_saves_it_is_not_read_to_validate(world: Path, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "adapter_config.json").write_text("{}")
    assert model_remarks(changed(world, ("model: ./model", "model: {folder: ./model, adapter: ./before}"))) == []
