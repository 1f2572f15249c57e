"""What every command promises: help with an example, one clear line for a mistake, the right exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from automl.cli.main import app, main

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return int(stop.value.code or 0), said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"automl {command}" in result.output.split("Example:")[1]


def test_the_reference_is_what_the_commands_say() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts/cli_reference.py")], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == made, "run scripts/cli_reference.py"


def test_validate_reports_every_problem_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "version: 1\nstudy: s\nmodel: m\ntask: {type: clasification, data: d}\ntrails: 3\n", encoding="utf-8"
    )
    code, out, _ = run("validate", str(space), "--json", capsys=capsys)
    problems = json.loads(out)["problems"]
    assert code == 2
    assert {(problem["line"], problem["key"]) for problem in problems} >= {(4, "task.type"), (5, "trails")}
    code, _, err = run("validate", str(space), capsys=capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == len(problems)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["validate", "nowhere.yaml"], 2, "nowhere.yaml: does not exist"),
        (["search", "nowhere.yaml"], 2, "nowhere.yaml: does not exist"),
        (["search"], 2, "Missing argument"),
        (["sarch"], 2, "sarch"),
        (["trials", "--db", "sqlite:///nowhere.db"], 3, "automl db init"),
        (["trials", "--db", "postgresql://me:secret@host/db"], 2, "AUTOML_DB_URL"),
        (["trials", "--db", "postgresql://me:se/cret@host/db"], 2, "AUTOML_DB_URL"),
        (["trials", "--db", "postgresql://host/db?user=me&password=secret"], 2, "AUTOML_DB_URL"),
        (["trials", "--db", "postgresql://host/db?sslmode=require&SSLPassword=secret"], 2, "AUTOML_DB_URL"),
        (["presets", "nope"], 2, "there is: "),
        (["inspect", "./nowhere"], 2, "nowhere"),
        (["init", "./nowhere", "nothing.jsonl"], 2, "nothing.jsonl"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_gets_a_line_and_a_code(
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    returned, _, err = run(*arguments, capsys=capsys)
    assert returned == code
    assert said in err
    assert "secret" not in err
    assert not (tmp_path / "nowhere.db").exists()


def test_init_writes_a_space_that_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.sweep.tiny_world import make_world

    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))
    code, _, err = run("init", "./model", "./data.jsonl", "-o", "new.yaml", capsys=capsys)
    assert code == 0, err
    assert run("validate", "new.yaml", capsys=capsys)[0] == 0
    assert "type: classification" in (tmp_path / "new.yaml").read_text(encoding="utf-8")
    code, _, err = run("init", "./model", "./data.jsonl", "-o", "new.yaml", capsys=capsys)
    assert code == 2
    assert "--force" in err


def test_inspect_tells_what_methods_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.architectures import save_tiny

    save_tiny(tmp_path / "model", "bert", kind="classification")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))
    code, out, err = run("inspect", "./model", "--labels", "3", "--methods", "--json", capsys=capsys)
    assert code == 0, err
    told = json.loads(out)
    costs = {each["method"]: each for each in told["methods"]}
    assert (told["rows"], told["tokens"]) == (8, 128)
    assert costs["full"]["trainable_params"] > costs["lora"]["trainable_params"] > costs["prompt"]["trainable_params"]
    code, out, _ = run("inspect", "./model", "--labels", "3", "--methods", capsys=capsys)
    assert f"{costs['full']['trainable_params']:,}" in out
    assert "not in this model: llama-pro (method llama-pro: " in out


def test_plan_for_devices_needs_a_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    small |= {"num_hidden_layers": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(small), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked = ("plan", "--model", "config.json", "--gpus", "2", "--gpu-memory", "100MB", "--max-length", "32")
    code, out, err = run(*asked, capsys=capsys)
    assert code == 0, err
    assert "LlamaForCausalLM: " in out
    assert all(name in out for name in ("data-parallel", "zero-3", "lora, bf16, int8 weights", "full, fp32"))
    assert "advice: lora, bf16: one device is enough" in out
    code, out, err = run(*asked, "--method", "qlora", "--explain", "--json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert [way["quantization"] for way in found["ways"]] == ["nf4 with double quantisation"]
    assert found["ways"][0]["smallest"] == "one-device"
    parts = {line["what"]: line["size"] for line in found["explained"]}
    assert sum(size for name, size in parts.items() if name != "total") == parts["total"]
    for wrong, said in (
        (("plan",), "name a space file"),
        (("plan", "space.yaml", "--model", "config.json"), "not both"),
        (("plan", "--model", "config.json"), "--gpu-memory"),
        (("plan", "--model", "nowhere/", "--gpu-memory", "8GB"), "nowhere"),
        ((*asked, "--gpus", "0"), "--gpus: 0"),
        ((*asked, "--method", "loro"), "lora"),
        ((*asked, "--target", "qvv"), "qv"),
        ((*asked, "--attention", "flsh"), "flash"),
        ((*asked, "--precision", "fp8"), "fp8"),
        ((*asked, "--method", "full", "--quantization", "nf4"), "leave it out"),
        ((*asked, "--method", "qlora", "--quantization", "none"), "leave one of them out"),
    ):
        code, _, err = run(*wrong, capsys=capsys)
        assert code != 0, wrong
        assert said in err, wrong
        assert "Traceback" not in err


def test_plan_for_devices_reads_what_a_space_file_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.sweep.tiny_world import make_world

    make_world(tmp_path, trials=12, steps=40)
    monkeypatch.chdir(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    code, out, err = run("plan", "space.yaml", "--gpu-memory", "24GB", "--json", capsys=capsys)
    assert code == 0, err
    way = json.loads(out)["ways"][0]
    assert (way["method"], way["rank"], way["smallest"]) == ("lora", 8, "one-device")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--gpu-memory", "24GB", "--rank", "8"), "--rank: is said by the space file"),
        (("--gpu-memory", "24GB", "--method", "qlora"), "--method: is said by the space file"),
        (("--quantization", "nf4"), "--quantization: is said by the space file"),
        (("--gpus", "1"), "--gpus: is for a plan for devices; add --gpu-memory"),
        (("--batch-size", "4"), "--batch-size: is for a plan for devices"),
    ],
)
def test_plan_refuses_options_that_would_say_nothing_beside_a_space_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str
) -> None:
    code, _, err = run("plan", str(tmp_path / "space.yaml"), *given, capsys=capsys)
    assert code == 2
    assert said in err


def test_plan_says_what_will_be_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.sweep.tiny_world import make_world

    make_world(tmp_path, trials=12, steps=40, pruner="peer", verify=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))
    code, out, err = run("plan", "space.yaml", "--json", capsys=capsys)
    assert code == 0, err
    plan = json.loads(out)
    assert [corner["rank"] for corner in plan["corners"]] == [1, 8]
    assert plan["probe"]["step_seconds"] > 0
    assert 0 < plan["pruned_seconds"] < plan["unpruned_seconds"]
    assert not (tmp_path / "automl.db").exists()
    code, out, _ = run("plan", "space.yaml", "--no-probe", capsys=capsys)
    assert code == 0
    assert "12 trials of 40 steps" in out
    assert "steps: 480 in the search if nothing is pruned" in out
    assert "and up to 880 in the verification after it (22 trainings of 40)" in out
    assert (plan["most_steps"], plan["verification_steps"]) == (480, 880)
    assert plan["verification_seconds"] > 0
    assert 0 <= plan["evaluation_share"] < 1  # rounded: on a busy machine a step may take all the time
    assert "rank: 1 … 8, log" in out
    assert "each worker trains 4 trials packed" in out
