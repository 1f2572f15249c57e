"""A model by its config.json alone: names and shapes, no weights, and no network for what is on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from automl.errors import ModelError
from automl.head import Kind
from automl.models.backbone import BackboneRef, skeleton
from automl.models.calling import first_line
from automl.models.folder import read_json

_MOST_LAYERS = 1024
_MOST_CLASSES = 1_000_000
_SHOWN = 60
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")


class Described(NamedTuple):
    """A network on the meta device. source: the configuration's file, or the hub's id.

    notes: sizes that the configuration does not give, each a sentence for a person.
    """

    source: str
    model: nn.Module
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Those of the network with its head; shared ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def describe(location: str, labels: int = 0, revision: str | None = None) -> Described:
    """The network that a folder, a config.json or a hub id describes, with a head for `labels` classes.

    labels: 0 = a language model, which writes from an encoder if it has one. Raises ModelError in a line if there is no
    such configuration, if it asks for code of its own, or if it describes no such model.
    """
    file = _file(location, revision)
    config = read_json(file)
    writes: Kind = "seq2seq-lm" if config.get("is_encoder_decoder") is True else "causal-lm"
    kind: Kind = "classification" if labels else writes
    architecture = _checked(config, file)
    ref = BackboneRef(path=str(file), fingerprint="", architecture=architecture, parameters=0, bytes=0)
    names = tuple(map(str, range(labels)))
    try:
        model = skeleton(_quantised_or_not(ref, config), kind, names)
    except ModelError as error:
        hint = "; for a classifier give --labels" if not labels and "encoder" in str(error) else ""
        raise ModelError(f"{error}{hint}") from error
    source = str(file) if Path(location).exists() else location
    return Described(source, model, tuple(_assumed(model.config, config, source)))


def _assumed(made: Any, config: Mapping[str, Any], source: str) -> Iterator[str]:
    """The sizes that transformers took from the architecture's defaults, since the file does not say them."""
    text = made.get_text_config()
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    for name in _SIZES:
        called = {name, text.attribute_map.get(name), *(old for old, new in text.attribute_map.items() if new == name)}
        value = getattr(text, name, None)
        if isinstance(value, int) and not any(each in part for each in called for part in parts):
            yield f"{source} gives no {name}: {value:,} is taken, which is usual for {text.model_type}"


def _quantised_or_not(ref: BackboneRef, config: Mapping[str, Any]) -> BackboneRef:
    """What marks a quantised checkpoint says nothing of shapes."""
    return replace(ref, is_stored_so="quantization_config" in config)


def _checked(config: Mapping[str, Any], file: Path) -> str:
    """The architecture. Raises ModelError for what is not to be built."""
    if "auto_map" in config:
        raise ModelError(f"{file}: auto_map asks for code that comes with the model, which is never run")
    architecture = config.get("model_type")
    if not isinstance(architecture, str):
        raise ModelError(f"{file}: model_type is missing; it should name the architecture")
    classes = config.get("num_labels")
    if isinstance(classes, int) and classes > _MOST_CLASSES:
        raise ModelError(f"{file}: num_labels: {classes:,} is above {_MOST_CLASSES:,}, the most that is planned for")
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for name, value in ((name, part[name]) for name in _COUNTS if name in part):
            if isinstance(value, int) and value > _MOST_LAYERS:
                raise ModelError(f"{file}: {name}: {value:,} is above {_MOST_LAYERS:,}, the most that is planned for")
    return architecture


def _file(location: str, revision: str | None) -> Path:
    try:
        path = Path(location).expanduser()
        is_folder = path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long; '~name' of a user there is not
        raise ModelError(
            f"'{location[:_SHOWN]}': no such folder, config.json or hub id: {first_line(error)[:_SHOWN]}"
        ) from error
    if is_folder:
        return path / "config.json"
    if path.is_file():
        if path.suffix != ".json":
            raise ModelError(f"{path}: is no config.json; name the model's folder, its config.json, or a hub id")
        return path
    if path.suffix == ".json" or location.startswith((".", "/", "~")):
        raise ModelError(f"{path}: no such folder or config.json")
    return _from_hub(location, revision)


def _from_hub(model_id: str, revision: str | None) -> Path:
    """The configuration's file in the local cache, from the hub if it is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model_id, "config.json", revision=revision))
    except HFValidationError as error:
        raise ModelError(f"'{model_id}' is neither a folder or file here nor a hub id (namespace/name)") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model '{model_id}': its config.json is not in the local cache and the hub cannot be reached; name a"
            f" folder or a config.json, or get it with network: hf download {model_id} config.json"
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(f"model '{model_id}': the hub has no config.json of it") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"model '{model_id}': the hub answers: {first_line(error)}") from error
