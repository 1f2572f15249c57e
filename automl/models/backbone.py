"""From model settings to a frozen network in memory: find, check, convert and load the backbone and its tokenizer.

`resolve_model` runs once per sweep, in the driver; what it returns is small and picklable, and workers load from it
without any network. Which layers a network has, and what a target set means in it, is in `automl.models.inventory`.

Only safetensors are read (pickled weights can run code), and no code that comes with a model is ever run.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from automl.errors import ModelError
from automl.head import HEADS, WRITERS, Kind
from automl.models.calling import first_line, quietly
from automl.models.fingerprint import combined_digest, file_digest
from automl.models.folder import (
    QUANTISED_FILES,
    inside_package,
    is_of_quantisation,
    not_quantised_after_all,
    read_config,
    read_json,
    refuse_quantised_tensors,
    stored_quantization,
)
from automl.models.gguf import converted_gguf
from automl.models.inventory import head_modules, mark_made_anew
from automl.models.quantisation import check_installed
from automl.models.quantised import compute_as_in_training, give_weights, loading_options
from automl.models.quantised_copy import Loaded, copy_folder, read_or_make
from automl.space.spec import ModelSettings, Quantization

logger = logging.getLogger(__name__)

Dtype = Literal["fp32", "bf16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Files that decide how text becomes ids; they count for the fingerprint, README and the like do not."""

_CONFIGURATIONS = ("config.json", "generation_config.json")
"""Files that transformers reads where the weights are."""

_AUTO_CLASSES: dict[str, Any] = {
    each.__name__: (each, mapping)
    for each, mapping in (
        (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
        (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneRef:
    """A backbone on the local disk, checked and identified.

    path: folder with config.json, safetensors and tokenizer. fingerprint: sha256 (hex) over the contents of these, the
    same wherever the folder lies. architecture: transformers' model_type. parameters, bytes: number and size of the
    floating-point tensors in the files (tied weights count once). copy: where another machine has the same files, empty
    if they are at `path` there too. quantization: how linear layers are held once they are loaded. is_stored_so: the
    files hold them so already. cache: folder in which quantised weights are kept; empty: they are made at each loading.
    """

    path: str
    fingerprint: str
    architecture: str
    parameters: int
    bytes: int
    copy: str = ""
    quantization: Quantization | None = None
    is_stored_so: bool = False
    cache: str = ""

    @property
    def folder(self) -> str:
        """Where the files are on this machine."""
        return self.copy or self.path


def resolve_model(settings: ModelSettings, cache: Path) -> BackboneRef:
    """Find the model that `settings` names, converting a GGUF file into `cache` if it is the first time.

    Raises ModelError in one line if it is not there, is not safetensors, or brings its own code; MissingExtraError if
    reading GGUF or the quantisation needs an extra. The network is used for hub ids only, and not with
    HF_HUB_OFFLINE=1.
    """
    match settings.kind:
        case "hub":
            folder = _hub_snapshot(settings.location, settings.revision)
        case "package":
            folder = _folder_or_gguf(inside_package(settings.location, settings.path), cache)
        case _:
            folder = _folder_or_gguf(Path(settings.location), cache)
    ref = reference(folder, cache)
    if ref.is_stored_so and settings.quantization not in (None, ref.quantization):
        raise ModelError(f"{folder}: is stored in {ref.quantization}; leave quantization out, or name the model it was")
    ref = replace(ref, quantization=settings.quantization or ref.quantization)
    if ref.quantization is not None:
        check_installed(f"quantization {ref.quantization.kind}")
        ref = replace(ref, cache=str(cache.absolute()))
    return ref


def load_backbone(
    ref: BackboneRef,
    kind: Kind,
    labels: Sequence[str] = (),
    dtype: str = "fp32",
    seed: int = 0,
) -> torch.nn.Module:
    """The network on the CPU: frozen, in eval mode, every dropout of its configuration 0, pad token set, quantised.

    Dropout is 0 because a trial's curve may depend on its own generator only; the adapter's dropout is the only one.
    labels: names of what the head tells apart, in the order of their ids. A head that the checkpoint lacks (or has for
    another number of classes) is initialised from `seed`, as is a missing pooler (`inventory.made_anew`); the global
    generators stay as they are. Raises ModelError if the architecture has no such head or the checkpoint lacks other
    weights.
    """
    config = _configuration(ref, kind, labels)
    config.pad_token_id = _pad_id(ref, config)
    model, info = _loaded(ref, kind, config, DTYPES[dtype], seed)
    mark_made_anew(model, _check_loaded(ref, model, info))
    model.requires_grad_(False)
    model.eval()
    compute_as_in_training(model, DTYPES[dtype])
    assert isinstance(model, torch.nn.Module)
    return model


def dense_backbone(ref: BackboneRef, kind: Kind, labels: Sequence[str] = ()) -> torch.nn.Module:
    """The network in float32 with the weights that a quantised one computes with; raises as `load_backbone` does."""
    if ref.is_stored_so:
        found: torch.nn.Module = load_backbone(ref, kind, labels).dequantize(torch.float32)  # type: ignore[operator]
        return found.requires_grad_(False)
    model = load_backbone(replace(ref, quantization=None), kind, labels)
    if ref.quantization is not None:
        give_weights(load_backbone(ref, kind, labels), model)
    return model


def load_tokenizer(ref: BackboneRef) -> Any:
    """The tokenizer, with a pad token: its own, else its end-of-text token. Raises ModelError if it has neither."""
    with quietly(f"{ref.path}: cannot load the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(ref.folder, trust_remote_code=False, local_files_only=True)
    # Without its vocabulary file transformers 5.23 makes a tokenizer that knows the special tokens and nothing else.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{ref.path}: the tokenizer has no vocabulary; tokenizer.json (or vocab.txt …) is missing")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{ref.path}: the tokenizer has neither a pad nor an end-of-text token; add a pad token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def skeleton(ref: BackboneRef, kind: Kind, labels: Sequence[str] = ()) -> torch.nn.Module:
    """The network's module tree on the meta device: all names and shapes, no weights, no memory."""
    config = _configuration(ref, kind, labels)
    if ref.is_stored_so:
        del config.quantization_config
    return _skeleton(ref, kind, config)


def _skeleton(ref: BackboneRef, kind: Kind, config: Any) -> torch.nn.Module:
    auto, _ = _AUTO_CLASSES[HEADS[kind].auto]
    with quietly(f"{ref.path}: config.json describes no {kind} model"), torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
    assert isinstance(model, torch.nn.Module)
    return model


# Finding


def _hub_snapshot(model_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
    wanted += ["adapter_config.json", "README.md", *QUANTISED_FILES]  # by these a repository without a model is known
    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=[*wanted, *TOKENIZER_FILES]))
    except HFValidationError as error:
        raise ModelError(f"'{model_id}' is neither a folder here nor a hub id (namespace/name)") from error
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise ModelError(f"model '{model_id}': the hub answers: {first_line(error)}") from error
        at = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"model '{model_id}' is not in the local cache and the hub cannot be reached; "
            f"get it with network: hf download {model_id}{at}"
        ) from error


def _folder_or_gguf(path: Path, cache: Path) -> Path:
    if path.is_dir():
        return path.resolve()
    if not path.is_file():
        raise ModelError(f"{path}: no such model folder or GGUF file")
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"{path}: a model is a folder with config.json and safetensors, or a .gguf file")
    return converted_gguf(path, cache)


def reference(folder: Path, cache: Path) -> BackboneRef:
    """What a model folder holds.

    Raises ModelError if it is no whole model in full precision (an adapter, say), is not safetensors, or brings its own
    code.
    """
    config = read_config(folder)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists() and "auto_map" in read_json(folder / name):
            raise ModelError(
                f"{folder / name}: auto_map asks for code that comes with the model, which is never run; "
                "use a model whose architecture is part of transformers"
            )
    architecture = config.get("model_type")
    if not isinstance(architecture, str):
        raise ModelError(f"{folder / 'config.json'}: model_type is missing; it should name the architecture")
    held = stored_quantization(config)
    files = _weight_files(folder)
    shapes = [shape for file in files for shape in (_float_tensors(file) if held is None else _held_tensors(file))]
    if held is not None and not any(is_of_quantisation(name) for file in files for name in _names(file)):
        raise not_quantised_after_all(folder, config)
    return BackboneRef(
        path=str(folder),
        fingerprint=combined_digest({file.name: file_digest(file, cache) for file in _identity(folder)}),
        architecture=architecture,
        parameters=sum(parameters for parameters, _ in shapes),
        bytes=sum(size for _, size in shapes),
        quantization=held,
        is_stored_so=held is not None,
    )


def model_files(folder: Path) -> list[Path]:
    """All files of a model folder that loading it may read."""
    others = [folder / name for name in ("generation_config.json", "model.safetensors.index.json")]
    return [*_identity(folder), *(file for file in others if file.is_file())]


def _identity(folder: Path) -> list[Path]:
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return [folder / "config.json", *_weight_files(folder), *tokenizer]


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in the order of their names; every shard the index names is there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if files and not missing:
        return files
    if index.is_file():
        raise ModelError(f"{index}: {', '.join(missing) or 'weight_map'} is missing; the model is incomplete")
    pickled = [file.name for suffix in ("bin", "pt", "pth", "h5") for file in sorted(folder.glob(f"*.{suffix}"))]
    if pickled:
        raise ModelError(f"{folder}: has {pickled[0]} but no model.safetensors; pickled weights are not read")
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs:
        raise ModelError(f"{folder}: has no model.safetensors; name the file {ggufs[0]} itself to use it")
    raise ModelError(f"{folder}: model.safetensors is missing; other formats of weights are not read")


@contextmanager
def _tensors_of(file: Path) -> Iterator[Any]:
    """The open safetensors file. Raises ModelError if it is none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        pointer = "; it is a pointer of Git LFS: run `git lfs pull`" if _is_lfs_pointer(file) else ""
        raise ModelError(f"{file}: not a readable safetensors file: {first_line(error)}{pointer}") from error


def _float_tensors(file: Path) -> Iterator[tuple[int, int]]:
    """(elements, bytes) of every floating-point tensor of a safetensors file, from its header alone."""
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
    with _tensors_of(file) as tensors:
        for name in refuse_quantised_tensors(file, tensors.keys()):
            part = tensors.get_slice(name)
            if part.get_dtype() in widths:
                elements = math.prod(part.get_shape())
                yield elements, elements * widths[part.get_dtype()]


def _held_tensors(file: Path) -> Iterator[tuple[int, int]]:
    """(weights, bytes) of every tensor of a file that bitsandbytes holds, scales left out: two in a byte of 4 bits."""
    widths = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "I8": (1, 1), "U8": (2, 1)}
    with _tensors_of(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            part = tensors.get_slice(name)
            if part.get_dtype() in widths and name.endswith((".weight", ".bias")):
                weights, size = widths[part.get_dtype()]
                elements = math.prod(part.get_shape())
                yield weights * elements, size * elements


def _names(file: Path) -> list[str]:
    with _tensors_of(file) as tensors:
        return list(tensors.keys())


def _is_lfs_pointer(file: Path) -> bool:
    """Whether the file only says what a clone without Git LFS left out."""
    with file.open("rb") as stream:
        return stream.read(24) == b"version https://git-lfs."


# Loading


def _configuration(ref: BackboneRef, kind: Kind, labels: Sequence[str]) -> Any:
    """transformers' configuration for this kind of head, without dropout."""
    with quietly(f"{ref.path}: transformers cannot read config.json"):
        config = AutoConfig.from_pretrained(ref.folder, trust_remote_code=False, local_files_only=True)
    _check_head(config, kind)
    without_dropout(config)
    if kind not in WRITERS:
        config.id2label = dict(enumerate(labels)) if labels else config.id2label
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = HEADS[kind].problem or None
    return config


def _loaded(ref: BackboneRef, kind: Kind, config: Any, dtype: torch.dtype, seed: int) -> Loaded:
    """The model with its weights, quantised if they are to be and the files do not hold them so already."""

    def read(folder: str, **options: Any) -> Loaded:
        with quietly(f"{ref.path}: cannot load the weights"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found: Loaded = _AUTO_CLASSES[HEADS[kind].auto][0].from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        return found

    if ref.quantization is None or ref.is_stored_so:
        return read(ref.folder)
    options = loading_options(ref.quantization, _skeleton(ref, kind, copy.deepcopy(config)), dtype)
    if not ref.cache:
        return read(ref.folder, **options)

    def read_copy() -> Loaded:
        config.quantization_config = options["quantization_config"].to_dict()
        return read(str(folder), device_map=options["device_map"])

    beside = [file for name in _CONFIGURATIONS if (file := Path(ref.folder) / name).is_file()]
    about = _about_copy(ref, kind, config, options["quantization_config"], dtype)
    folder = copy_folder(Path(ref.cache), about, beside)
    return read_or_make(folder, beside, read=read_copy, make=lambda: read(ref.folder, **options))


def _about_copy(ref: BackboneRef, kind: Kind, config: Any, quantization: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What the bits of a quantised model depend on. A head of another size is not read from the checkpoint."""
    labels = config.num_labels if kind == "classification" else 0
    held = {"held": quantization.to_dict(), "dtype": str(dtype)}
    return {"model": ref.fingerprint, "kind": kind, "labels": labels, **held}


def without_dropout(config: Any) -> None:
    """Set every dropout rate of a transformers configuration, nested ones included, to 0.

    Architectures name them freely (hidden_dropout_prob, attn_pdrop, resid_pdrop, dropout_rate, layerdrop,
    summary_first_dropout, seq_classif_dropout …); all are numbers whose name contains "drop".
    """
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            without_dropout(value)
        elif "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def _pad_id(ref: BackboneRef, config: Any) -> int:
    """The tokenizer's pad id, which must have an embedding."""
    pad, rows = int(load_tokenizer(ref).pad_token_id), int(config.get_text_config().vocab_size)
    if pad >= rows:
        raise ModelError(f"{ref.path}: the tokenizer's pad id {pad} is outside the {rows} embeddings of the model")
    return pad


def _check_head(config: Any, kind: Kind) -> None:
    _, mapping = _AUTO_CLASSES[HEADS[kind].auto]
    if type(config) not in mapping:
        what = f"transformers has no {kind} model for architecture '{config.model_type}'"
        raise ModelError(what + _hint(config, kind))
    reads_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if kind == "causal-lm" and reads_both_ways:
        raise ModelError(
            f"architecture '{config.model_type}' is an encoder{'-decoder' * config.is_encoder_decoder} and sees the"
            f" tokens it should predict; this task needs a decoder (gpt2, llama, qwen3 …){_hint(config, kind)}"
        )


def _hint(config: Any, kind: Kind) -> str:
    """What trains models of this architecture to write, as the end of a sentence."""
    return "; task seq2seq trains it" if kind == "causal-lm" and config.is_encoder_decoder else ""


def _check_loaded(ref: BackboneRef, model: Any, info: Any) -> list[str]:
    """Weights of a new pooler; every other one outside the head must have come from the checkpoint."""
    head = tuple(f"{name}." for name in head_modules(model))
    mismatched = sorted(key for key, *_ in info["mismatched_keys"] if not key.startswith(head))
    if mismatched:
        raise ModelError(f"{ref.path}: {mismatched[0]} has another shape in the checkpoint than config.json says")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(head))
    lost = [key for key in missing if ".pooler." not in key]
    if lost:
        raise ModelError(f"{ref.path}: the checkpoint lacks {len(lost)} weights of {type(model).__name__}: {lost[0]} …")
    if missing:
        logger.warning(
            "%s: the checkpoint has no pooler; it is initialised from the seed, stays frozen and is exported with"
            " every adapter",
            ref.path,
        )
    return missing
