"""Which tuners the installed PEFT has, and what their configurations may be told: read from its source.

Importing PEFT takes seconds, and space files are checked and studies shown where it is not imported. What a tuner is
called is its folder in `peft.tuners`, which is its `peft_type` in small letters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from automl.methods.settings import Setting
from automl.trial import Scalar

PREFIX = "peft"
"""What names of methods begin with that are tuners of PEFT: `peft:vera`."""

LEFT_TO_PEFT = "default"
"""Value of a setting that stands for PEFT's own default, where that is true or false among texts."""

_VIRTUAL = "puts trained tokens before the rows"
ELSEWHERE: Mapping[str, str] = {
    "lora": "is method lora",
    "adalora": "is method adalora",
    "ia3": "is method ia3",
    "prompt_tuning": "is method prompt",
    "p_tuning": "is method p-tuning",
    "prefix_tuning": "is method prefix",
    "multitask_prompt_tuning": f"{_VIRTUAL} for several tasks at once; use method prompt",
    "cpt": f"{_VIRTUAL} and wants to be told which; use method prompt with prompt_text",
    "cartridge": f"{_VIRTUAL} that it makes of a text; use method prefix",
    "adaption_prompt": "puts trained tokens into attention layers of its own choice; use method prefix",
    "ln_tuning": "trains norms; use method bitfit with bitfit_norms: true",
    "trainable_tokens": "trains the embeddings of tokens that it is told; use method full",
    "xlora": "mixes adapters that are trained already; use method lora",
    "poly": "trains adapters for several tasks at once; use method lora",
}
"""Tuners that cannot be reached by their names, and what there is instead."""

_SET_HERE = "is set for the trial and cannot be given"
_LAYERS = "is what target is for; name a target set instead"
_UNSEEDED = "is drawn from the generator of the process, so that a trial could not go on as it was; leave it out"
OWNED: Mapping[str, str] = {
    **dict.fromkeys(
        ("task_type", "peft_type", "auto_mapping", "inference_mode", "revision", "peft_version"), _SET_HERE
    ),
    **dict.fromkeys(("base_model_name_or_path", "fan_in_fan_out", "progressbar"), _SET_HERE),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), _LAYERS),
    "modules_to_save": "is the head of a classifier, which is always trained, and nothing else",
    "bias": "trains biases of the model, which all trials share; use method bitfit",
    **dict.fromkeys(("module_dropout", "rank_dropout", "rank_dropout_scale", "boft_dropout"), _UNSEEDED),
    "use_asa": "wants to be told of each step; leave it out",
    "runtime_offload_base_weight": "moves weights of the model, which all trials share; leave it out",
}
"""Fields that a space file cannot give, and why."""


class Field(NamedTuple):
    """A field of a tuner's configuration. reason: why it cannot be given; then there is no setting."""

    setting: Setting | None
    reason: str = ""


def tuner_names() -> tuple[str, ...]:
    """Names of the tuners that can be reached, in alphabetical order; none without PEFT."""
    folder = _folder()
    found = sorted(path.parent.name for path in folder.glob("*/config.py")) if folder else []
    return tuple(name for name in found if name not in ELSEWHERE)


@lru_cache(maxsize=64)
def fields_of(tuner: str) -> dict[str, Field]:
    """Fields of a tuner's configuration by name, in their order; of one that is not installed none."""
    folder = _folder()
    file = folder / tuner / "config.py" if folder else None
    if file is None or not tuner.isidentifier() or not file.is_file():
        return {}
    declared = {"rank_pattern": Field(None, "gives ranks by layer, which is for method lora")}
    for node in _configuration(ast.parse(file.read_text(encoding="utf-8"))).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = _field(tuner, node.target.id, node.annotation, node.value)
    return declared


def settings_of(tuner: str) -> tuple[Setting, ...]:
    """The fields that can be given, each as a setting with the name `tuner.field`."""
    return tuple(field.setting for field in fields_of(tuner).values() if field.setting)


def tuners_with(name: str) -> list[str]:
    """The method whose setting has the name `tuner.field`, if there is one."""
    tuner, _, field = name.partition(".")
    known = fields_of(tuner) if tuner in tuner_names() else {}
    return [f"{PREFIX}:{tuner}"] if field in known and known[field].setting else []


def objection(name: str) -> str:
    """Why a field of a tuner, by its name `tuner.field`, cannot be given; empty if it can, or if there is none."""
    tuner, _, field = name.partition(".")
    if field in OWNED and tuner in tuner_names():
        return OWNED[field]
    return found.reason if (found := fields_of(tuner).get(field)) else ""


@lru_cache(maxsize=64)
def reads_quantised(tuner: str) -> bool:
    """Whether PEFT has layers of this tuner for weights that bitsandbytes holds: of its own, or by PEFT's backends."""
    folder = _folder()
    if folder is None or not (model := folder / tuner / "model.py").is_file():
        return False
    return (folder / tuner / "bnb.py").is_file() or "resolve_quantization_backend" in model.read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _folder() -> Path | None:
    spec = find_spec("peft")
    return Path(spec.origin).parent / "tuners" if spec and spec.origin else None


def _configuration(module: ast.Module) -> ast.ClassDef:
    """The class that is a tuner's configuration: the last one that derives from another configuration."""
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    derived = [each for each in classes if any(ast.unparse(base).endswith("Config") for base in each.bases)]
    return (derived or classes)[-1]


def _field(tuner: str, name: str, annotation: ast.expr, value: ast.expr | None) -> Field:
    if name in OWNED:
        return Field(None, OWNED[name])
    types = set(_types(annotation))
    default, texts = _default(value), sorted(each.value for each in types if isinstance(each, _Text))
    kinds = {each for each in types if isinstance(each, str)}
    if default is None:
        return Field(None, "has no value by default, and is left to PEFT")
    if kinds - {"int", "float", "bool", "str"}:
        return Field(None, "is more than a number, a text or a switch, and is left to PEFT")
    if isinstance(default, bool) and (texts or "str" in kinds):
        default, texts = LEFT_TO_PEFT, [LEFT_TO_PEFT, *texts] if texts else []
    elif "float" in kinds and not isinstance(default, str):
        default = float(default)
    choices = () if "str" in kinds else tuple(texts)
    is_sized = not isinstance(default, float) and not name.endswith(("seed", "key"))
    return Field(
        Setting(
            name=f"{tuner}.{name}",
            default=default,
            meaning=f"field {name} of PEFT's {tuner}",
            choices=choices,
            sized=is_sized,
        )
    )


class _Text(NamedTuple):
    """A text that a Literal allows."""

    value: str


def _types(annotation: ast.expr) -> Iterator[str | _Text]:
    """The types that an annotation allows, but for None: their names, and texts of a Literal."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Optional" | "Union"), slice=inside):
            for each in inside.elts if isinstance(inside, ast.Tuple) else [inside]:
                yield from _types(each)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from _types(left)
            yield from _types(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inside):
            for each in inside.elts if isinstance(inside, ast.Tuple) else [inside]:
                yield _Text(str(ast.literal_eval(each)))
        case ast.Constant(value=None):
            return
        case _:
            yield ast.unparse(annotation)


def _default(value: ast.expr | None) -> Scalar | None:
    """The default of a field that is a number, a text or a switch; else None."""
    if isinstance(value, ast.Call):
        value = next((each.value for each in value.keywords if each.arg == "default"), None)
    try:
        found = ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None
    return found if isinstance(found, (bool, int, float, str)) else None
