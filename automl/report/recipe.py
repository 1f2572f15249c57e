"""The winner as ten lines of PEFT that run as they stand, made from the adapter's own files."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from automl.head import HEADS, kind_of

_FEW = 4  # so many module names are listed as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftRecipe:
    """use: Python that puts the trained adapter on its base model. train: Python that attaches the same adapter anew;
    empty if PEFT does not have the method. training: what the optimizer is to be told, on one line.
    """

    use: str
    train: str
    training: str


def recipe(adapter: str | None, *, is_held: bool = True) -> PeftRecipe | None:
    """Read the adapter's folder; None if it is not there any more or is not one of ours.

    is_held: on a quantised base model, if it was trained on one; otherwise on the model as it is stored.
    """
    if adapter is None:
        return None
    folder = Path(adapter)
    try:
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["about"]
        steps = int(about["step"])
        training = _training(about["hyperparameters"], steps, int(about.get("schedule_steps", steps)))
        if (folder / "adapter.safetensors").is_file():
            return PeftRecipe(use=_use_ours(str(folder)), train="", training=training)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = _base(config, about, str(folder), about["backbone"].get("quantization") if is_held else None)
        return PeftRecipe(
            use=_use(base, str(folder)) + _unit(about),
            train=(
                _train(base, _as_begun(config, about["hyperparameters"]))
                if config["peft_type"] == "LORA"
                else _train_as(base, str(folder))
            ),
            training=training,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def module_pattern(names: Sequence[str]) -> str:
    """A regular expression that matches exactly these dotted module paths, layers written once: `a\\.(?:0|1)\\.b`."""
    layers: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    plain = []
    for name in sorted(set(names)):
        parts = name.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if at is None:
            plain.append(re.escape(name))
        else:
            layers[".".join(parts[:at])][".".join(parts[at + 1 :])].append(int(parts[at]))
    pieces = [piece for prefix, suffixes in layers.items() for piece in _of_prefix(prefix, suffixes)]
    return "|".join([*plain, *pieces])


def _of_prefix(prefix: str, suffixes: Mapping[str, Sequence[int]]) -> list[str]:
    """One piece for all endings that occur in the same layers."""
    endings: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for suffix, numbers in suffixes.items():
        endings[tuple(sorted(numbers))].append(suffix)
    pieces = []
    for numbers, ends in endings.items():
        head = re.escape(f"{prefix}.") if prefix else ""
        tails = "|".join(re.escape(f".{end}" if end else "") for end in ends)
        pieces.append(f"{head}(?:{'|'.join(map(str, numbers))})(?:{tails})")
    return pieces


class _Base(NamedTuple):
    """What is to be imported from transformers, and the lines that load the base model as it was trained on."""

    names: str
    lines: str


def _base(config: Mapping[str, Any], about: Mapping[str, Any], folder: str, held: Mapping[str, Any] | None) -> _Base:
    """held: arguments of BitsAndBytesConfig, if the base model is quantised."""
    auto = HEADS[kind_of(about)].auto
    dtype = "bfloat16" if about["precision"] == "bf16" else "float32"
    names, lines, given = [auto], [], [repr(str(config["base_model_name_or_path"])), f"dtype={dtype!r}"]
    if about.get("labels"):
        names.insert(0, "AutoConfig")
        what = "with the unit of the number" if about.get("scale") else "with the names of the classes"
        lines.append(f"settings = AutoConfig.from_pretrained({folder!r})  # {what}")
        given.insert(1, "config=settings")
    if about.get("head") or about.get(
        "labels"
    ):  # the model may have a head of another size, which the adapter's takes the place of
        given.append("ignore_mismatched_sizes=True")
    if held:
        names.append("BitsAndBytesConfig")
        lines += ["held = BitsAndBytesConfig(", *(f"    {name}={value!r}," for name, value in held.items()), ")"]
        given.append("quantization_config=held")
    return _Base(", ".join(names), "\n".join([*lines, f"base = {auto}.from_pretrained({', '.join(given)})"]))


def _use(base: _Base, folder: str) -> str:
    return f"""\
from peft import PeftModel
from transformers import {base.names}

{base.lines}
model = PeftModel.from_pretrained(base, {folder!r})"""


def _unit(about: Mapping[str, Any]) -> str:
    """What the number means that a model predicts, as a comment."""
    scale = about.get("scale")
    return f"\n# a label is {scale['mean']!r} + {scale['deviation']!r} * logits[:, 0]" if scale else ""


def _use_ours(folder: str) -> str:
    return f"import automl\n\nmodel, tokenizer = automl.load_adapter({folder!r})"


def _as_begun(config: Mapping[str, Any], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that training began with.

    An adapter that began as a part of the weight is saved with what takes that away, at twice the rank.
    """
    if "init" not in hyper:
        return dict(config)
    rank, alpha = (now / then for now, then in ((config["r"], hyper["rank"]), (config["lora_alpha"], hyper["alpha"])))
    return {
        **config,
        "r": hyper["rank"],
        "lora_alpha": hyper["alpha"],
        "rank_pattern": {key: round(each / rank) for key, each in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {key: each / alpha for key, each in (config.get("alpha_pattern") or {}).items()},
        "init_lora_weights": hyper["init"],
    }


def _train(base: _Base, config: Mapping[str, Any]) -> str:
    arguments = "\n".join(f"    {line}," for line in _arguments(config))
    is_eva = config.get("init_lora_weights") == "eva"
    begun = "  # then initialize_lora_eva_weights(model, batches of training rows)" if is_eva else ""
    return f"""\
from peft import {"EvaConfig, " if is_eva else ""}LoraConfig, get_peft_model
from transformers import {base.names}

{base.lines}
config = LoraConfig(
{arguments}
)
model = get_peft_model(base, config){begun}"""


def _train_as(base: _Base, folder: str) -> str:
    """Lines for a method other than LoRA, whose configuration is known to PEFT alone."""
    return f"""\
from peft import PeftConfig, get_peft_model
from transformers import {base.names}

{base.lines}
config = PeftConfig.from_pretrained({folder!r}, inference_mode=False)
model = get_peft_model(base, config)"""


def _arguments(config: Mapping[str, Any]) -> list[str]:
    lines = [
        f"task_type={config['task_type']!r}, r={config['r']!r}, lora_alpha={config['lora_alpha']!r}",
        f"lora_dropout={config['lora_dropout']!r}, use_rslora={bool(config.get('use_rslora'))}",
        f"target_modules={_targets(config['target_modules'])}",
    ]
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(name):
            lines.append(f"{name}={config[name]!r}")
    if config.get("use_dora"):
        lines.append("use_dora=True")
    if isinstance(config.get("init_lora_weights"), str):
        lines.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if config.get("init_lora_weights") == "eva":
        lines.append("eva_config=EvaConfig(rho=1.0)")
    return lines


def _targets(given: str | Sequence[str]) -> str:
    if isinstance(given, str) or len(given) <= _FEW:
        return repr(given)
    pattern = module_pattern(given)
    return repr(pattern) if '"' in pattern or "\n" in pattern else f'r"{pattern}"'


def _training(hyper: Mapping[str, Any], steps: int, whole: int) -> str:
    """whole: steps for which the schedule is made, of which the adapter was trained for the first ones."""
    warmup = math.ceil(float(hyper["warmup"]) * whole)
    which = f"{steps} steps" if steps == whole else f"the first {steps} of {whole} steps"
    clip = f"gradient norm at most {hyper['clip']:g}" if hyper["clip"] else "no gradient clipping"
    return (
        f"AdamW, learning rate {hyper['learning_rate']:.4g}, weight decay {hyper['weight_decay']:g}, batch size"
        f" {hyper['batch_size']}, {which}, {hyper['schedule']} schedule with {warmup} steps of warm-up, {clip}"
        f"{''.join(_besides(hyper))}"
    )


def _besides(hyper: Mapping[str, Any]) -> Iterator[str]:
    if "lora_plus_ratio" in hyper:
        yield f"; B at {hyper['lora_plus_ratio']:g} times that rate (LoRA+)"
    if hyper.get("optimizer") == "adamw_8bit":
        yield "; moments in 8 bits (bitsandbytes)"
    if hyper.get("freeze_a"):
        yield "; A frozen (LoRA-FA)"
    if "neftune_alpha" in hyper:
        yield f"; noise of alpha {hyper['neftune_alpha']:g} on the embeddings (NEFTune)"
