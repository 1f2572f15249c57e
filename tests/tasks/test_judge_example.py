"""The judge of examples/ against a service of the OpenAI kind on this machine."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from automl.errors import MetricError
from automl.space.spec import OwnMetric
from automl.tasks.command import judge

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = [
    {"prompt": "2 + {2} =", "response": "4", "prediction": "4", "row": 0},
    {"prompt": "Capital of France?", "response": "Paris", "prediction": "Lyon", "row": 1},
    {"prompt": "Sing.", "response": "La", "prediction": "Lu", "row": 2},
]


class Service(BaseHTTPRequestHandler):
    """Grades what it is asked; away for as many requests as `away` says."""

    asked: ClassVar[list[tuple[str, str | None, dict[str, Any]]]] = []
    away: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body))
        text = body["messages"][0]["content"]
        grade = "10" if "Answer: 4" in text else "Grade: 2.5 of 10" if "Lyon" in text else "no idea"
        status = self.away.pop() if self.away else 200
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": grade}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Service]]:
    Service.asked.clear()
    Service.away.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("AUTOML_METRIC_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("AUTOML_METRIC_MODEL", "tiny")
        monkeypatch.setenv("AUTOML_METRIC_KEY", "sk-test")
        yield Service
        server.shutdown()
        thread.join()


JUDGE = OwnMetric(name="maximize:judge", command=(sys.executable, "judge.py"), folder=str(EXAMPLES))


def test_answers_are_graded(service: type[Service]) -> None:
    assert judge(JUDGE, ROWS) == pytest.approx((1.0 + 0.25 + 0.0) / 3)
    assert {(path, key) for path, key, _ in service.asked} == {("/v1/chat/completions", "Bearer sk-test")}
    assert sorted("2 + {2} =" in body["messages"][0]["content"] for _, _, body in service.asked) == [False, False, True]
    assert all(body["model"] == "tiny" and body["temperature"] == 0 for _, _, body in service.asked)


def test_a_service_that_is_away_for_a_moment_costs_nothing(service: type[Service]) -> None:
    service.away.append(503)
    assert judge(JUDGE, ROWS[:1]) == 1.0
    assert len(service.asked) == 2


def test_a_service_that_stays_away_is_named(service: type[Service]) -> None:
    service.away.extend([503] * 9)
    with pytest.raises(MetricError, match=r"ended with status 1; it said: .*HTTP Error 503: Service Unavailable"):
        judge(JUDGE, ROWS[:1])
