"""The shape of the code: imports go down only, heavy packages live behind one door each, the CLI starts light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "automl"
WEB = ROOT / "dashboards"

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "trial",
        "head",
        "lanes",
        "lora",
        "metric",
        "nearest",
        "outcomes",
        "ranking",
        "provenance",
        "durable",
        "progress",
        "registry",
        "trial_folders",
        "watchdog",
    ),
    ("methods",),
    ("space",),
    ("models", "tasks", "importance", "storage"),
    ("study", "training"),
    ("results",),
    ("execution", "packed", "report"),
    ("setup",),
    ("squeeze",),
    ("sweep",),
    ("verify",),
    ("compose",),
    ("schedule", "library", "testing"),
    ("cli",),
)

FENCES: dict[str, tuple[str, ...]] = {
    "optuna": (
        "study/",
        "storage/optuna_",
        "storage/sql.py",
        "results/parameter_importance.py",
        "report/optuna_dashboard.py",
        "library/study.py",  # names a type
        "testing/",
    ),
    "ray": ("execution/ray_",),
    "sqlalchemy": ("storage/",),
    "alembic": ("storage/",),
    "fsspec": ("storage/depot.py",),
    "plotly": ("report/",),
    "peft": ("methods/", "training/export.py"),
    "pydantic": ("space/", "study/samplers/", "study/pruners/"),
    "yaml": ("space/",),
    "jsonschema": ("space/json_schema.py",),
    "referencing": ("space/json_schema.py",),
    "regex": ("space/extraction.py",),
    "sacrebleu": ("tasks/text_metrics.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "cronsim": ("schedule/",),
    "prometheus_client": ("schedule/",),
    "optuna_dashboard": ("report/optuna_dashboard.py",),
}

WEB_UNITS = ("", "errors", "metric", "ranking", "report", "results", "schedule", "space", "storage")
"""What the web application may use of automl: nothing that trains, nothing of the command line. "": the version."""

WEB_PACKAGES = ("a2wsgi", "fastapi", "jinja2", "optuna_dashboard", "pydantic", "starlette", "uvicorn")
OF_THE_WEB_ALONE = ("a2wsgi", "fastapi", "starlette", "uvicorn")

FORBIDDEN_TEXT = ("pickle.load", "yaml.load(", "torch.load(", "trust_remote_code=True", "shell=True", "0.0.0.0")

Import = tuple[Path, int, str]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def web_modules() -> list[Path]:
    return sorted(WEB.rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path) for path in (*modules(), *web_modules())}


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield path, node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield path, node.lineno, inner if inner in MODULES else node.module


def unit_of(dotted_or_path: str | Path) -> str:
    if isinstance(dotted_or_path, Path):
        return dotted_or_path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    parts = dotted_or_path.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer_of(unit: str) -> int:
    for number, units in enumerate(LAYERS):
        if unit in units:
            return number
    raise AssertionError(f"unit {unit!r} has no layer: add it to LAYERS")


def place(item: Import) -> str:
    path, line, name = item
    return f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_imports_go_down_and_units_of_a_layer_do_not_meet() -> None:
    wrong = []
    for path in modules():
        unit = unit_of(path)
        if unit == "__init__":
            continue
        for item in imports_of(path):
            if not item[2].startswith("automl."):
                continue
            other = unit_of(item[2])
            # A unit may import itself; otherwise strictly lower layers, except among the plain values of layer 0.
            if (
                other in (unit, "__version__")
                or layer_of(other) < layer_of(unit)
                or layer_of(unit) == layer_of(other) == 0
            ):
                continue
            wrong.append(place(item))
    assert not wrong, "\n".join(wrong)


def test_no_cycle_between_modules() -> None:
    graph = {
        dotted(path): {target for _, _, target in imports_of(path) if target in MODULES} - {dotted(path)}
        for path in (*modules(), *web_modules())
        if path != PACKAGE / "__init__.py"  # it imports nothing; a name is loaded when somebody uses it
    } | {"automl": set()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("package", sorted(FENCES))
def test_third_party_package_stays_behind_its_fence(package: str) -> None:
    allowed = FENCES[package]
    wrong = [
        place(item)
        for path in modules()
        for item in imports_of(path)
        if item[2].split(".")[0] == package and not str(path.relative_to(PACKAGE)).startswith(allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_web_application_is_started_by_its_command_alone() -> None:
    wanting = [place(item) for path in modules() for item in imports_of(path) if item[2].split(".")[0] == "dashboards"]
    assert {each.partition(":")[0] for each in wanting} == {"automl/cli/dashboard.py"}
    command = ast.parse((PACKAGE / "cli" / "dashboard.py").read_text(encoding="utf-8"))
    assert not [node for node in command.body if "dashboards" in ast.unparse(node) and not is_definition(node)]


def is_definition(node: ast.stmt) -> bool:
    """A function, whose imports happen when it is called; or the module's docstring."""
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def test_the_web_application_trains_nothing_and_asks_sql_through_storage() -> None:
    wrong = []
    for path in web_modules():
        for item in imports_of(path):
            package = item[2].split(".")[0]
            if package == "automl":
                allowed = unit_of(item[2]) in WEB_UNITS
            else:
                allowed = package in (*WEB_PACKAGES, "dashboards", "__future__") or package in sys.stdlib_module_names
            if not allowed:
                wrong.append(place(item))
    assert not wrong, "\n".join(wrong)


SETTING_UP = (
    *("choose_layout", "choose_packing", "host_settings", "prepare", "prove"),
    *("settle_evaluation", "settle_precision"),
)


def test_how_trials_are_trained_is_decided_behind_one_door() -> None:
    """The steps are taken in `setup`, in the order of `set_up`; whoever needs their outcome asks for a `Setup`."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {alias.name}"
        for path in (*modules(), *(ROOT / "benchmarks").rglob("*.py"))
        if not path.is_relative_to(PACKAGE / "setup")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("automl.setup.")
        for alias in node.names
        if alias.name in SETTING_UP
    ]
    assert not wrong, "\n".join(wrong)


def test_web_packages_stay_in_the_web_application() -> None:
    wrong = [
        place(item) for path in modules() for item in imports_of(path) if item[2].split(".")[0] in OF_THE_WEB_ALONE
    ]
    assert not wrong, "\n".join(wrong)


KNOW_DIRECTIONS = ("automl/metric.py", "automl/storage/ranking.py")
"""The one sign, and the same in SQL. Everything else asks for a loss, or asks `automl.ranking`."""


def test_one_place_knows_what_a_direction_means() -> None:
    decides = re.compile(r"""(==|!=|\bis|\bnot|\bin|=) \(?["'](max|min)imize|StudyDirection\.M|\bmaximize\b:""", re.I)
    assert decides.search('sign = -1.0 if direction == "maximize" else 1.0')
    assert decides.search("CASE WHEN d.direction = 'MAXIMIZE' THEN")
    knowing = {
        str(path.relative_to(ROOT))
        for path in (*modules(), *web_modules())
        if decides.search(path.read_text(encoding="utf-8"))
    }
    assert sorted(knowing) == sorted(KNOW_DIRECTIONS)


def test_nothing_but_the_console_prints() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (*modules(), *web_modules())
        if path != PACKAGE / "cli" / "console.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_commands_and_processes_of_our_own_end_their_process() -> None:
    allowed = ("cli/", "execution/ray_driver.py", "testing/formula.py", "testing/whole_way.py")  # both as workers die
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if "os._exit(" in path.read_text(encoding="utf-8") and not str(path.relative_to(PACKAGE)).startswith(allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_commands_and_processes_of_our_own_handle_signals() -> None:
    allowed = "cli/"
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if "signal.signal(" in path.read_text(encoding="utf-8")
        and not str(path.relative_to(PACKAGE)).startswith(allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_unsafe_loading() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in (*modules(), *web_modules())
        for text in FORBIDDEN_TEXT
        if text in path.read_text(encoding="utf-8").replace(" = ", "=")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_called_utils() -> None:
    assert not [
        path for path in (*modules(), *web_modules()) if path.stem in {"utils", "common", "misc", "helpers", "manager"}
    ]


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (*modules(), *web_modules())}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 500} == {}


def test_the_wheel_carries_every_file_that_is_no_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]
    carried = {
        file
        for name, globs in patterns.items()
        for each in globs
        for file in (ROOT / name.replace(".", "/")).glob(each)
    }
    there = [file for folder in (PACKAGE, WEB) for file in folder.rglob("*") if file.is_file()]
    data = {file for file in there if file.suffix not in (".py", ".pyc")}
    assert len(data) > 20
    assert sorted(data - carried) == []


OVERRIDDEN = {
    "Observer.stage": "a watcher overrides what it wants to hear of",
    "Observer.started": "a watcher overrides what it wants to hear of",
    "Observer.tick": "a watcher overrides what it wants to hear of",
    "ParkingPruner.hopeless": "a policy may leave open which trials are beyond hope",
    "Task.compares_rows": "the loss of most tasks judges each row by itself",
    "Task.lengths": "a task may leave open how long its rows are",
    "Task.target_lengths": "most tasks have no targets apart from their texts",
    "Task.row_tokens": "of most tasks a row is its tokens",
    "Task.evaluate_by_row": "a task may leave open what becomes of each row",
    "Task.for_trial": "the loss of most tasks has no hyperparameters",
    "Task.on": "the loss of most tasks needs to know nothing of all training rows",
    "Task.referred": "most tasks do not refer to the untuned model",
    "Task.refusal": "most tasks can be learned with any configuration",
}
"""Concrete methods that a subclass may override all the same: they do nothing, and say so, where nobody answers."""

Class = tuple[str, ast.ClassDef]


def classes() -> dict[str, Class]:
    """Every class by its dotted name, with the module it is defined in."""
    return {
        f"{dotted(path)}.{node.name}": (dotted(path), node)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def bases_of(found: dict[str, Class], module: str, node: ast.ClassDef) -> Iterator[str]:
    """Dotted names of all base classes that are ours, however far up."""
    for base in node.bases:
        name = ast.unparse(base).split("[")[0]
        for candidate in (f"{module}.{name}", imported(module).get(name, "")):
            if candidate in found:
                yield candidate
                yield from bases_of(found, *found[candidate])


@cache
def imported(module: str) -> dict[str, str]:
    """What the names that a module has imported stand for."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def methods(node: ast.ClassDef, *, abstract: bool) -> set[str]:
    return {
        each.name
        for each in node.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        if any("abstractmethod" in ast.unparse(decorator) for decorator in each.decorator_list) is abstract
    }


def test_a_method_once_implemented_is_not_overridden() -> None:
    found = classes()
    overridden = {
        f"{base.rpartition('.')[2]}.{method}": name
        for name, (module, node) in found.items()
        for base in bases_of(found, module, node)
        for method in methods(node, abstract=False) & methods(found[base][1], abstract=False)
    }
    assert {each: overridden[each] for each in overridden.keys() - OVERRIDDEN.keys()} == {}
    assert OVERRIDDEN.keys() - overridden.keys() == set(), "no exception any more"


def is_abstract(node: ast.ClassDef) -> bool:
    """A class with abstract methods, or a protocol that asks for more than properties."""
    asked = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    is_protocol = any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    return bool(methods(node, abstract=True)) or (is_protocol and not all(each.decorator_list for each in asked))


def test_contributing_names_what_is_abstract() -> None:
    abstract = {node.name for _, node in classes().values() if is_abstract(node)}
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    said = re.search(r"\*\*Abstract\*\* are (.*?) Everything else is a function or a final class", text)
    assert said is not None
    assert sorted(re.findall(r"`([A-Z]\w+)`", said[1])) == sorted(abstract)


HEAVY = ("torch", "ray", "peft", "transformers", "datasets", "optuna", "sqlalchemy")


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["--help"], (*HEAVY, "markdown_it")),
        (["validate", "search_spaces/bbc-topics.yaml"], ("torch", "ray", "peft", "transformers")),
        (["schema"], ("torch", "ray", "peft", "transformers")),
        (["dashboard", "--help"], (*HEAVY, *OF_THE_WEB_ALONE)),
    ],
    ids=["help", "validate", "schema", "dashboard"],
)
def test_light_commands_load_no_heavy_package(command: list[str], heavy: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom automl.cli.main import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "print('LOADED', loaded, file=sys.stderr)\n"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "LOADED []" in result.stderr, f"{result.stderr} after {time.perf_counter() - started:.1f} s"


def test_packed_training_starts_without_peft_ray_optuna_and_sql() -> None:
    script = (
        "import sys\nimport automl.packed.host\n"
        "print([name for name in ('peft', 'ray', 'optuna', 'sqlalchemy') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_the_web_application_starts_without_what_trains() -> None:
    script = (
        "import sys\nimport dashboards.serve\n"
        "print([name for name in ('torch', 'ray', 'peft', 'transformers', 'datasets') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_results_are_read_without_what_trains_or_draws() -> None:
    script = (
        "import importlib, pkgutil, sys\nimport automl.results\n"
        "for module in pkgutil.iter_modules(automl.results.__path__):\n"
        "    importlib.import_module(f'automl.results.{module.name}')\n"
        "heavy = ('torch', 'ray', 'plotly', 'peft', 'transformers', 'datasets')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
