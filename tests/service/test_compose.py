"""docker-compose.yml and Dockerfile are well-formed, confined, and start commands that exist. No container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from automl.space.derive import derived_text
from automl.space.load import parse_space
from automl.storage.roles import WEB
from tests.service.composed import DOCUMENT, FILE, ONCE, ROOT, SERVICES, SETTING, environment_of, probe_of

_PINNED = re.compile(r"[\w./-]+:\d+\.\d+[\w.-]*")
_SECRET_FOLDER = "/run/secrets/"
_each_service = pytest.mark.parametrize("name", SERVICES)


def _program(name: str) -> str:
    """A linter beside this interpreter or on PATH; skips where it is not installed."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'automl-lora[dev]'")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_follows_its_schema() -> None:
    _run(_program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FILE))


def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    _run(_program("hadolint"), str(ROOT / "Dockerfile"))


def test_all_parts_of_the_service_are_there() -> None:
    parts = {"database", "roles", "migrate", "ray-head", "ray-worker", "ray-worker-gpu", "web", "scheduler"}
    assert set(SERVICES) == parts
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [name for name in (*SERVICES, *DOCUMENT["secrets"]) if f"`{name}`" not in guide] == []


@_each_service
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    user, _, group = service["user"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["read_only"] is True
    assert any(place.startswith("/tmp") for place in service["tmpfs"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    loosened = {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode", "env_file"}
    assert loosened.isdisjoint(service)
    assert "docker.sock" not in str(service)
    assert set(service["networks"]) <= {"inside", "outside"}


@_each_service
def test_ports_are_on_this_machine_only(name: str) -> None:
    ports = SERVICES[name].get("ports", [])
    assert all(isinstance(port, str) and port.startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (name == "web")
    assert ("outside" in SERVICES[name]["networks"]) == bool(ports)
    assert DOCUMENT["networks"]["inside"] == {"internal": True}


@_each_service
def test_secrets_are_files_and_granted_where_they_are_used(name: str) -> None:
    service = SERVICES[name]
    given = environment_of(service)
    for variable, value in given.items():
        if "://" in value:
            assert make_url(value).password is None, variable
        if re.search(r"PASSWORD|TOKEN|SECRET", variable):
            assert variable.endswith(("_FILE", "_PATH")), variable
            assert value.startswith(_SECRET_FOLDER), variable
    used = re.findall(rf"{_SECRET_FOLDER}(\w+)", " ".join((*service["command"], *given.values())))
    assert sorted(set(used)) == sorted(service.get("secrets", []))
    assert set(used) <= set(DOCUMENT["secrets"])


def test_secret_files_reach_neither_the_history_nor_the_image() -> None:
    assert all(secret == {"file": f"./secrets/{name}"} for name, secret in DOCUMENT["secrets"].items())
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert "!secrets" not in ignored


@_each_service
def test_a_service_that_stays_is_watched_and_waited_for(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) == (name not in ONCE)
    assert service["restart"] == ("on-failure:3" if name in ONCE else "unless-stopped")
    for needed, how in service.get("depends_on", {}).items():
        ready = "service_completed_successfully" if needed in ONCE else "service_healthy"
        assert how == {"condition": ready}


@_each_service
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    if service["image"] == "automl-lora:local":
        assert service["pull_policy"] == "never"
        assert service["user"] == re.findall(r"^USER (\S+)$", _dockerfile(), re.MULTILINE)[-1]
    else:
        assert _PINNED.fullmatch(service["image"])


# As many builds as services would leave as many images, all but one of them without a name.
def test_the_image_is_built_once_by_a_service_that_is_always_started() -> None:
    builders = [name for name, service in SERVICES.items() if "build" in service]
    assert builders == ["roles"]
    assert "profiles" not in SERVICES["roles"]


# Whatever machine it is started on: nothing that a small one cannot give is asked for by default.
def test_settings_have_defaults_that_start_everywhere_and_are_explained() -> None:
    settings = dict(SETTING.findall(FILE.read_text(encoding="utf-8")))
    assert settings == {
        "AUTOML_OBJECT_STORE": "209715200",
        "AUTOML_WORKERS": "1",
        "AUTOML_WORKER_CPUS": "0",
        "AUTOML_WORKER_MEMORY": "0",
        "AUTOML_PORT": "8321",
    }
    head = FILE.read_text(encoding="utf-8").split("\nname:")[0]
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [name for name in settings if name not in head or f"`{name}`" not in guide] == []
    limits = SERVICES["ray-worker"]["deploy"]["resources"]["limits"]
    assert {float(limits[name]) for name in ("cpus", "memory")} == {0.0}  # as Docker writes: none
    assert "${" not in str(DOCUMENT)


@_each_service
def test_processes_are_limited_and_shared_memory_holds_the_object_store(name: str) -> None:
    service = SERVICES[name]
    assert service["pids_limit"] > 0
    stores = [int(word.partition("=")[2]) for word in service["command"] if word.startswith("--object-store-memory=")]
    assert bool(stores) == name.startswith("ray-")
    assert all(store < int(service["shm_size"].removesuffix("g")) << 30 for store in stores)


# Compose refuses the whole file where limits do not say the same as pids_limit, absence included.
@_each_service
def test_limits_name_the_same_number_of_processes(name: str) -> None:
    limits = SERVICES[name].get("deploy", {}).get("resources", {}).get("limits")
    assert limits is None or limits.get("pids") == SERVICES[name]["pids_limit"]


# Somebody waits for the first answer of a health check, and it comes after one interval.
@_each_service
def test_no_start_waits_long_for_a_health_check(name: str) -> None:
    if name not in ONCE:
        assert int(SERVICES[name]["healthcheck"]["interval"].removesuffix("s")) <= 10


def test_the_web_has_a_role_of_its_own_and_no_other_secret() -> None:
    web, others = SERVICES["web"], [service for name, service in SERVICES.items() if name != "web"]
    assert make_url(environment_of(web)["AUTOML_DB_URL"]).username == WEB
    assert web["secrets"] == ["database_web", "dashboard_token"]
    roles = {make_url(environment_of(each).get("AUTOML_DB_URL", "x://none@x")).username for each in others}
    assert WEB not in roles


# The example is what a reader copies: it must be accepted, and its nights must be able to write.
def test_the_schedule_of_the_guide_starts_where_its_services_can_write(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n# data/nightly.yaml\n(.*?)```", guide, flags=re.DOTALL)
    spec = parse_space(text, "nightly.yaml", Path("/srv/automl/data"))
    mounts = {mount["target"]: mount.get("read_only", False) for mount in SERVICES["scheduler"]["volumes"]}
    holding = [target for target in mounts if spec.run.output.is_relative_to(target)]
    assert mounts[max(holding, key=len)] is False
    assert f"--port={(spec.run.address or '').partition(':')[2]}" in SERVICES["ray-head"]["command"]
    assert (spec.run.address or "").partition(":")[0] in SERVICES
    derived = derived_text(spec, study="night", heading="a night", folder=Path("/srv/automl/data"))
    night = parse_space(derived, "space.yaml", tmp_path)
    assert (night.run.output, night.run.address) == (spec.run.output, spec.run.address)
    assert str(night.model.location).startswith("/srv/automl/data/")


# What a space file may ask for is there; artifacts elsewhere are asked for by few, and their clients are large.
def test_the_image_has_every_extra_that_a_search_may_need() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (installed,) = re.findall(r'pip install --no-compile "\.\[([\w,-]+)\]"', _dockerfile())
    assert set(installed.split(",")) == declared.keys() - {"demo", "dev", "notebooks", "dashboards", "s3", "lm-eval"}


def test_the_image_holds_no_bytecode() -> None:
    installs = [line for line in _dockerfile().splitlines() if "pip install" in line]
    assert all("--no-compile" in line for line in installs)
    assert "PYTHONPYCACHEPREFIX=/tmp/" in _dockerfile()


@_each_service
def test_what_is_mounted_is_declared(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        if mount["type"] == "volume":
            assert mount["source"] in DOCUMENT["volumes"]
        else:
            assert (mount["type"], mount["read_only"]) == ("bind", True)


@_each_service
def test_commands_exist_with_these_options(name: str) -> None:
    program, *words = SERVICES[name]["command"]
    if program == "postgres":
        assert words[0::2] == ["-c"]
        return
    _resolve(program, words)
    if "healthcheck" in SERVICES[name] and (probe := probe_of(SERVICES[name]))[0] == "ray":
        _resolve("ray", probe[1:])


def test_the_image_is_made_of_pinned_bases_and_of_what_the_builder_is_sent() -> None:
    lines = _dockerfile().splitlines()
    assert all(_PINNED.fullmatch(line.split()[1]) for line in lines if line.startswith("FROM "))
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in lines if re.match(r"COPY (?!--)", line) for source in line.split()[1:-1]}
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'"\.\[([\w,-]+)\]"', _dockerfile())
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (torch,) = re.findall(r'"(torch[^"]+)"', _dockerfile())
    assert torch in project["dependencies"]


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def _resolve(program: str, words: list[str]) -> None:
    """Walk down to the command, each option known where it stands; its `--help` must work."""
    runner, command = _roots()[program]
    path = []
    for word in words:
        if word.startswith("-"):
            known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            assert word.partition("=")[0] in known, f"{program} {' '.join(path)}: {word}"
        else:
            path.append(word)
            command = command.commands[word]
    done = runner.invoke(_roots()[program][1], [*path, "--help"], prog_name=program)
    assert done.exit_code == 0
    assert path[-1] in done.output


def _roots() -> dict[str, tuple[Any, Any]]:
    """A way to call each program in this process, and its outermost command."""
    from click.testing import CliRunner
    from ray.scripts.scripts import cli
    from typer.main import get_command

    from automl.cli.main import app

    return {"ray": (CliRunner(), cli), "automl": (CliRunner(), get_command(app))}
