"""Exports: an adapter's folder or a merged model, each with a manifest, and the proof that it works.

The folder is PEFT's where PEFT has the method. Of one that adapts in place (`automl.methods.in_place`) it holds
adapter.safetensors, and the manifest says what the method is to be told to hold it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors.torch import load_file, save
from torch import Tensor, nn

from automl import durable
from automl.errors import CheckpointError, ModelError, ResourceError
from automl.head import Kind, Scale, kind_of, scale_from_json
from automl.lora import Hyperparameters
from automl.methods.attaching import ADAPTER
from automl.methods.fusion import attach_fused
from automl.methods.in_place import is_in_place, restored
from automl.methods.registry import METHODS
from automl.models.backbone import BackboneRef, dense_backbone, load_backbone, load_tokenizer
from automl.models.calling import quietly
from automl.models.inventory import head_modules, made_anew, resolve_targets
from automl.tasks import make_task
from automl.training.adapter import AdapterMeta, adapter_draft, note_scale
from automl.training.runtime import HostSettings, Runtime, Split, load_model, load_runtime, stored_dtype

OWN_WEIGHTS = "adapter.safetensors"
"""What was trained in place, by parameter names."""

_UNIT = "automl_unit"
"""Where a model keeps the hook that turns what it says into the unit of the labels."""


def export_adapter(
    model: Any, folder: Path, meta: AdapterMeta, *, tokenizer: Any, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapted model's adapter and head as a folder that `with_adapter` loads; all of it or nothing.

    Parts of the backbone that were made anew are in it too, as modules to save: no other file has them.

    For `PeftModel.from_pretrained` adapter_model.safetensors and adapter_config.json (its base model is the backbone's
    folder), or else adapter.safetensors; the tokenizer unless it is large, manifest.json; for classification also
    config.json, whose id2label names the classes. An older folder is replaced. tensors: those of `travelling`, by
    parameter name, where the model's are shares only. Raises ResourceError if the disk refuses.
    """
    with adapter_draft(folder, meta, config=model.config, tokenizer=tokenizer) as draft:
        whole = travelling(model) if tensors is None else tensors
        if is_in_place(model):
            _write_tensors(whole, draft / OWN_WEIGHTS)
            return
        saved = get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=False)
        saved |= {name: whole[name] for name in _made_anew(model)}
        found, config = METHODS[meta.hyper.method].exported(model, saved, _adapter_config(model, meta.backbone, draft))
        _write_tensors(found, draft / "adapter_model.safetensors")
        (draft / "adapter_config.json").write_bytes(durable.canonical(config))


def _write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write them; what layers share, as bases of RandLora, once for each of its names: safetensors has no links."""
    contiguous: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in tensors.items():
        found = tensor.detach().cpu().contiguous()
        place = found.untyped_storage().data_ptr()
        contiguous[name] = found.clone() if place in held else found
        held.add(place)
    durable.write_file(file, save(contiguous, metadata={"format": "pt"}))


def travelling(model: Any) -> dict[str, Tensor]:
    """All that an exported adapter must hold, by name: the adapter, trained or not, its buffers, what was made anew.

    What layers share is there by each of its names, as PEFT looks for it by one of them; of a model that is adapted in
    place (tied embeddings) by its first one.
    """
    anew = set(_made_anew(model))
    parameters = {
        name: each
        for name, each in model.named_parameters(remove_duplicate=is_in_place(model))
        if each.requires_grad or _is_adapters(name) or name in anew
    }
    return parameters | {name: each for name, each in model.named_buffers(remove_duplicate=False) if _is_adapters(name)}


def _is_adapters(name: str) -> bool:
    """Whether a tensor of PEFT's model is of the adapter, by whose name it is kept there."""
    return ADAPTER in name.split(".")


def _made_anew(model: Any) -> list[str]:
    """Parameters of the adapted model's backbone that its checkpoint lacked."""
    base = model if is_in_place(model) else model.get_base_model()
    prefix = next(f"{path}." if path else "" for path, module in model.named_modules() if module is base)
    return [
        f"{prefix}{path}.{name}" for path in made_anew(base) for name, _ in base.get_submodule(path).named_parameters()
    ]


def verify_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of an adapter or merged model says; raises CheckpointError if any file is not as written."""
    return durable.verify_folder(folder)


def merge_adapter(adapter: Path, settings: HostSettings, out: Path) -> None:
    """Fold an adapter into the backbone of `settings` and write a full model folder, in float32.

    It holds safetensors, tokenizer and a manifest. Logits agree with the unmerged model to a relative 1e-4. A quantised
    backbone is folded into as its weights are held, and written in bfloat16: that rounds. Raises ModelError if the
    method's adapters cannot be merged, CheckpointError if this one is damaged or was trained on another backbone,
    ResourceError if the disk refuses.
    """
    about = _verified(adapter, "adapter", settings)
    check_mergeable(adapter, about)
    head = make_task(settings.task).head(settings.prepared)
    base = dense_backbone(settings.backbone, head.kind, head.labels)
    adapted = with_adapter(base, adapter)
    with quietly(f"{adapter}: PEFT cannot merge an adapter of method {about['hyperparameters'].get('method')}"):
        merged = adapted if is_in_place(adapted) else adapted.merge_and_unload(safe_merge=True)
    if settings.backbone.quantization is not None:
        merged = merged.to(torch.bfloat16)
    try:
        with durable.sealed_folder(out, {**about, "kind": "merged"}) as draft, quietly(f"{out}: cannot write"):
            note_scale(merged.config, head.scale)
            merged.save_pretrained(draft)
            load_tokenizer(settings.backbone).save_pretrained(draft)
    except ModelError as error:  # safetensors has its own words for a full disk
        raise ResourceError(str(error)) from error


def check_mergeable(adapter: Path, about: Mapping[str, Any]) -> None:
    """Raise ModelError, in a line, if the method of this adapter has nothing that weights could take up."""
    name = about["hyperparameters"].get("method")
    if name is not None and not METHODS[name].mergeable:
        raise ModelError(f"{adapter}: an adapter of method {name} cannot be merged into the model; export it as it is")


def load_adapter(folder: Path, backbone: BackboneRef) -> tuple[Any, Any]:
    """The frozen model of an exported adapter on its backbone, on the CPU and in eval mode, and its tokenizer.

    For classification its configuration names the classes; a number is predicted in the unit of its labels. Raises
    CheckpointError if the folder is damaged or of another backbone.
    """
    about = _same_backbone(folder, verify_manifest(folder), backbone)
    base = load_backbone(backbone, _kind(folder, about), about["labels"], stored_dtype(str(about["precision"])))
    model = with_adapter(base, folder).requires_grad_(False).eval()
    _speak_in(model, scale_from_json(about.get("scale")))
    return model, load_tokenizer(replace(backbone, path=str(folder)) if has_tokenizer(folder) else backbone)


def load_adapters(folders: Mapping[str, Path], backbone: BackboneRef) -> tuple[Any, Any]:
    """The frozen model with several exported adapters, by these names, the first of them on, and its tokenizer.

    `model.set_adapter(name)` switches. Raises ModelError if they do not go together, CheckpointError as it does.
    """
    first, *others = [
        (folder, _same_backbone(folder, verify_manifest(folder), backbone)) for folder in folders.values()
    ]
    for folder, about in others:
        for what in ("labels", "precision", "head", "scale"):
            if about.get(what) != first[1].get(what):
                raise ModelError(f"{first[0]} and {folder} have different {what}; they cannot be on one model")
    labels, precision = first[1]["labels"], str(first[1]["precision"])
    base = load_backbone(backbone, _kind(*first), labels, stored_dtype(precision))
    model = with_adapters(base, folders).requires_grad_(False).eval()
    _speak_in(model, scale_from_json(first[1].get("scale")))
    given = replace(backbone, path=str(first[0])) if has_tokenizer(first[0]) else backbone
    return model, load_tokenizer(given)


def _kind(folder: Path, about: Mapping[str, Any]) -> Kind:
    try:
        return kind_of(about)
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: its head is of a kind {error.args[0]!r} that this version does not know"
        ) from None


def _speak_in(model: nn.Module, scale: Scale | None) -> None:
    """Let a model that predicts a number answer in the unit of the labels, where it was trained in standard ones."""

    def in_unit(module: nn.Module, given: Any, output: Any) -> Any:
        assert scale is not None
        output.logits = scale.mean + scale.deviation * output.logits
        return output

    if scale is not None:
        vars(model)[_UNIT] = model.register_forward_hook(in_unit)


def as_trained(model: nn.Module) -> None:
    """Let a model that `load_adapter` has made say its numbers as it was trained, in standard units."""
    if (hook := vars(model).pop(_UNIT, None)) is not None:
        hook.remove()


def has_tokenizer(folder: Path) -> bool:
    """Whether an adapter's folder has the tokenizer too."""
    return (folder / "tokenizer_config.json").is_file()


def evaluate_export(folder: Path, settings: HostSettings, split: Split = "validation") -> dict[str, float]:
    """Load an exported adapter from disk, put it on the backbone and evaluate it as a trial is evaluated.

    On `validation` the rows are those of the search, so the result equals the recorded metrics (to 1e-6 in fp32 on the
    CPU); on `test` all rows are used. Raises CheckpointError if the folder is damaged or of another backbone.
    """
    _verified(folder, "adapter", settings)
    runtime = load_runtime(replace(settings, judged_on=split))
    return _evaluate(with_adapter(runtime.model, folder), runtime)


def evaluate_merged(folder: Path, settings: HostSettings, split: Split = "validation") -> dict[str, float]:
    """Evaluate a folder that `merge_adapter` has written; see `evaluate_export`."""
    _verified(folder, "merged", settings)
    backbone = replace(settings.backbone, path=str(folder), quantization=None)
    merged = load_model(replace(settings, backbone=backbone))
    runtime = load_runtime(replace(settings, judged_on=split), merged)
    return _evaluate(runtime.model, runtime)


def _evaluate(model: nn.Module, runtime: Runtime) -> dict[str, float]:
    return runtime.evaluate(model.to(runtime.device), runtime.evaluation_rows, runtime.evaluation_tokens)


def _verified(folder: Path, kind: str, settings: HostSettings) -> dict[str, Any]:
    """The manifest of an undamaged export of this kind, trained on the backbone of `settings`."""
    about = verify_manifest(folder)
    if about.get("kind") != kind:
        raise CheckpointError(f"{folder}: holds {about.get('kind', 'something else')}, not {kind}")
    return _same_backbone(folder, about, settings.backbone)


def _same_backbone(folder: Path, about: dict[str, Any], backbone: BackboneRef) -> dict[str, Any]:
    trained, given = about["backbone"]["fingerprint"], backbone.fingerprint
    if trained != given:
        raise CheckpointError(f"{folder}: was trained on backbone {trained[:12]}, not on {given[:12]}")
    return about


def with_adapter(base: nn.Module, folder: Path) -> Any:
    """The adapted model of a backbone with the adapter in this folder: PEFT's, or of one that adapts in place.

    Raises ModelError if PEFT refuses it, CheckpointError if it is damaged or does not fit.
    """
    return with_adapters(base, {ADAPTER: folder})


def with_adapters(base: nn.Module, folders: Mapping[str, Path]) -> Any:
    """The adapted model of a backbone with the adapters in these folders, by name, as `with_adapter`; the first is on.

    `set_adapter(name)` of the model, PEFT's or ours, puts another one on. Raises ModelError if PEFT refuses one, or if
    some are of methods that it does not have and others are not, CheckpointError if one is damaged or does not fit.
    """
    own = [name for name, folder in folders.items() if (folder / OWN_WEIGHTS).is_file()]
    if len(own) == len(folders):
        return _adapted_in_place(base, {name: _read_own(folder) for name, folder in folders.items()})
    if own:
        raise ModelError(f"{folders[own[0]]}: its method adapts in place, other than PEFT's; load it by itself")
    for name, folder in folders.items():
        if "." in name or any(name in prefix for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values()):
            raise ModelError(f"{folder}: PEFT has no adapters of the name {name!r}; rename the folder")
    (first, place), *others = folders.items()
    with _loading(place):
        model = PeftModel.from_pretrained(base, str(place), adapter_name=first)
    for name, folder in others:
        with _loading(folder):
            model.load_adapter(str(folder), name)
    return model


def saved_names(model: Any) -> set[str]:
    """Names of the tensors that PEFT would save of its model, as they are in the file."""
    return set(get_peft_model_state_dict(model, save_embedding_layers=False))


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """What PEFT raises in the block is a ModelError that names the folder; what it warns of needlessly is not heard."""
    with quietly(f"{folder}: PEFT cannot load the adapter"), warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed; see automl.methods.lora.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # peft 0.21 (tuners/tuners_utils.py) reads AdaLoRA's rank_pattern as LoRA's, warns, and then loads it rightly.
        warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match .*\.lora_E'")
        # peft 0.21 (tuners/boft/layer.py) tries to build an extension for GPUs, and says how it went.
        warnings.filterwarnings("ignore", message="Failed to load the CUDA extension|Setting boft_n_butterfly_factor")
        # peft 0.21 (tuners/beft/layer.py) says before what it refuses to merge; we do when it is to be merged.
        warnings.filterwarnings("ignore", message="Detected that the base layer has no bias term")
        # A Conv1D is an nn.Linear while it is quantised; its adapter is put on it as it is stored.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but the target module is `Conv1D`")
        yield


class _Own(NamedTuple):
    """An adapter that adapts in place: what its manifest says, and what was trained, by name."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def _read_own(folder: Path) -> _Own:
    return _Own(verify_manifest(folder), load_file(folder / OWN_WEIGHTS))


def _adapted_in_place(base: nn.Module, adapters: Mapping[str, _Own]) -> nn.Module:
    """The backbone with the first of these adapters; its `set_adapter` takes that off and puts another one on."""

    def set_adapter(name: str, inference_mode: bool = True) -> None:
        if name not in adapters:
            raise ModelError(f"no adapter {name!r} on this model; it has {', '.join(adapters)}")
        model = _put_on(restored(base), adapters[name]).eval()
        if inference_mode:
            model.requires_grad_(False)

    model = _put_on(base, next(iter(adapters.values())))
    if len(adapters) > 1:
        vars(model)["set_adapter"] = set_adapter  # in the place of transformers' own, which is for PEFT's adapters
    return model


def _put_on(base: nn.Module, own: _Own) -> nn.Module:
    """The backbone as the method adapts it, with what was trained."""
    tensors, model = dict(own.tensors), _attached(base, own.about)
    with torch.no_grad():
        for name in _made_anew(model):
            model.get_parameter(name).copy_(tensors.pop(name))
    METHODS[own.about["hyperparameters"]["method"]].load_state(model, tensors)
    return model


def _attached(base: nn.Module, about: Mapping[str, Any]) -> nn.Module:
    """The backbone with an adapter as a manifest describes it, a fusion of several among them, that has no numbers."""
    hyper, members = Hyperparameters.of(about["hyperparameters"]), about.get("composed", {}).get("members")
    layers = resolve_targets(base, hyper.target, about.get("targets"))
    paths, head = [layer.path for layer in layers], head_modules(base)
    if members is not None:
        return attach_fused(base, [Hyperparameters.of(each) for each in members], paths, head, 0)
    return METHODS[hyper.method].attach(base, hyper, paths, head, 0, steps=about["step"])


def _adapter_config(model: Any, backbone: BackboneRef, draft: Path) -> dict[str, Any]:
    """PEFT's own file, for inference on the backbone's folder; names are sorted, so the file is repeatable."""
    model.peft_config["default"].save_pretrained(draft)
    document: dict[str, Any] = json.loads((draft / "adapter_config.json").read_text(encoding="utf-8"))
    document.update(base_model_name_or_path=backbone.path, inference_mode=True)
    if anew := made_anew(model.get_base_model()):
        document["modules_to_save"] = [*(document.get("modules_to_save") or ()), *anew]
    for name in ("target_modules", "modules_to_save"):
        if isinstance(document.get(name), list):
            document[name] = sorted(set(document[name]))  # peft 0.21 adds heads twice beside virtual tokens
    return document
