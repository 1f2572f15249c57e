"""The orchestrator counts what it injects, reports what was violated, and can be repeated; its proxy obeys."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import free_port
from tests.faults.proxy import Proxy
from tests.faults.scenario import Findings, Scenario, SkipScenario, Trial, sizes, stretch
from tests.faults.suite import SCENARIOS, main, run_scenario, summary


def scenario(run: object, injected: str = "kills") -> Scenario:
    return Scenario(id="R-00", title="nothing", injected=injected, sizes=sizes(5, 50), run=run)  # type: ignore[arg-type]


def test_the_bound_is_three_over_the_number_of_injections() -> None:
    def inject(trial: Trial) -> Findings:
        return Findings(count=trial.size)

    outcome = run_scenario(scenario(inject), "full", seed=1)
    (row,) = summary([outcome.as_dict()], "full", 1)["scenarios"]
    assert (row["n"], row["violations"], row["bound_95"]) == (50, 0, 0.06)
    total = summary([outcome.as_dict()] * 2, "full", 1)
    assert (total["kills"], total["kills_bound_95"]) == (100, 0.03)


def test_a_violation_has_no_bound() -> None:
    def inject(trial: Trial) -> Findings:
        findings = Findings(count=trial.size)
        findings.expect(False, "a trial was lost")
        return findings

    row = run_scenario(scenario(inject), "ci", seed=1).as_dict()
    assert (row["violations"], row["bound_95"], row["first_violations"]) == (1, None, ["a trial was lost"])


def test_an_error_of_a_scenario_is_a_violation_and_a_skip_is_not() -> None:
    def fail(trial: Trial) -> Findings:
        raise OSError("no such thing")

    def skip(trial: Trial) -> Findings:
        raise SkipScenario("no root")

    failed, skipped = (run_scenario(scenario(run), "ci", seed=1) for run in (fail, skip))
    assert "no such thing" in failed.findings.violations[0]
    assert (skipped.skipped, skipped.findings.violations) == ("no root", [])


def test_the_same_seed_repeats_a_scenario_whatever_else_runs() -> None:
    drawn: list[float] = []

    def draw(trial: Trial) -> Findings:
        drawn.append(trial.chance.random())
        random.random()
        return Findings()

    for seed in (1, 1, 2):
        run_scenario(scenario(draw), "ci", seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_row_of_the_catalogue_has_a_scenario() -> None:
    named = " ".join(each.id for each in SCENARIOS)
    covered = named.replace("R-24..R-28", "R-24 R-25 R-26 R-27 R-28")
    missing = [number for number in range(1, 36) if f"R-{number:02d}" not in covered]
    assert missing == []
    assert len({each.id for each in SCENARIOS}) == len(SCENARIOS)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"R-99.*there are: R-01 sqlite"):
        main(["--ci", "--only", "R-99"])


def test_two_small_scenarios_at_the_same_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--ci", "--only", "R-16,control: checker", "--seed", "3", "--json", str(tmp_path / "out.json")]
    assert main([*chosen, "--jobs", "2"]) == 0
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (report["violations"], [each["n"] for each in report["scenarios"]]) == (0, [300, 7])
    assert json.loads(capsys.readouterr().out)["seed"] == 3


def test_time_is_stretched_by_at_least_one() -> None:
    assert stretch() >= 1.0


class TestProxy:
    @pytest.fixture
    def echo(self) -> Iterator[int]:
        """A server that sends back what it gets."""
        with socket.create_server(("127.0.0.1", 0)) as server:

            def serve() -> None:
                while True:
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

            def answer(connection: socket.socket) -> None:
                with connection, contextlib.suppress(OSError):
                    while data := connection.recv(100):
                        connection.sendall(data)

            threading.Thread(target=serve, daemon=True).start()
            yield server.getsockname()[1]

    @pytest.fixture
    def proxy(self, echo: int) -> Iterator[Proxy]:
        with Proxy(echo, free_port()) as proxy:
            yield proxy

    def said(self, connection: socket.socket, *, within: float = 60.0) -> bytes:
        connection.settimeout(within)
        connection.sendall(b"hello")
        return connection.recv(100)

    def test_passes(self, proxy: Proxy) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            assert self.said(connection) == b"hello"

    def test_refuses_and_listens_again(self, proxy: Proxy) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            assert self.said(connection) == b"hello"
            proxy.set("refuse")
            with pytest.raises(ConnectionResetError):
                self.said(connection)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
        proxy.set("pass")
        self.test_passes(proxy)

    def test_swallows_without_a_word(self, proxy: Proxy) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            assert self.said(connection) == b"hello"
            proxy.set("blackhole")
            with pytest.raises(TimeoutError):
                self.said(connection, within=0.3)
            with socket.create_connection(("127.0.0.1", proxy.port)) as other, pytest.raises(TimeoutError):
                self.said(other, within=0.3)

    def test_breaks_connections_and_accepts_new_ones(self, proxy: Proxy) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            assert self.said(connection) == b"hello"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                self.said(connection)
        self.test_passes(proxy)
