"""A program that judges answers: what it gets, what is taken from it, and that none of its ways to fail does harm."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from automl.errors import MetricError
from automl.space.spec import OwnMetric
from automl.tasks.command import judge

ROWS = [{"prompt": "2 + 2 =", "response": "4", "prediction": said, "row": n} for n, said in enumerate("45\u00e9")]


def asked(program: str, folder: Path, rows: list[dict[str, Any]] | None = None, timeout: float = 60.0) -> float:
    """What a judge answers that is written in Python."""
    (folder / "judge.py").write_text(program, encoding="utf-8")
    command = (sys.executable, "judge.py")
    own = OwnMetric(name="maximize:judge", command=command, folder=str(folder), timeout=timeout)
    return judge(own, ROWS if rows is None else rows)


def test_it_gets_a_row_a_line_and_answers_a_number(tmp_path: Path) -> None:
    program = """
import json, sys
rows = [json.loads(line) for line in sys.stdin]
assert [row["prediction"] for row in rows] == ["4", "5", "\\u00e9"] and rows[2]["row"] == 2, rows
print(sum(row["prediction"] == row["response"] for row in rows) / len(rows))
"""
    assert asked(program, tmp_path) == 1 / 3


def test_or_an_object_with_a_score(tmp_path: Path) -> None:
    assert asked("import json\nprint(json.dumps({'score': 3, 'why': 'so'}, indent=1))", tmp_path) == 3.0


def test_it_need_not_read_its_rows(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "prediction": "x" * 1000, "row": number} for number in range(1000)]
    assert asked("import os\nos.close(0)\nprint(0.5)", tmp_path, rows) == 0.5


def test_it_sees_what_is_meant_for_it_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_DB_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("OTHER_TOKEN", "secret")
    monkeypatch.setenv("AUTOML_METRIC_KEY", "meant")
    program = "import json, os\nopen('seen.json', 'w').write(json.dumps(dict(os.environ)))\nprint(1)"
    assert asked(program, tmp_path) == 1.0
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert seen["AUTOML_METRIC_KEY"] == "meant"
    assert "secret" not in str(seen)


FAILS = {
    "garbage": ("print('very good')", "answered 'very good', not one finite number or {\"score\": number}"),
    "nothing": ("", "answered '', not one finite number"),
    "nan": ("print('NaN')", "answered 'NaN', not one finite number"),
    "infinite": ("print('1e999')", "answered '1e999', not one finite number"),
    "longer than a float": ("print('9' * 400)", "not one finite number"),
    "a truth value": ("print('true')", "answered 'true', not one finite number"),
    "a number in quotes": ("print('\"0.5\"')", "not one finite number"),
    "an object without a score": ("print('{\"value\": 1}')", "not one finite number"),
    "two numbers": ("print(1)\nprint(2)", "not one finite number"),
    "bytes": ("import sys\nsys.stdout.buffer.write(bytes(range(256)))", "not one finite number"),
    "deep": ("print('[' * 50000)", "not one finite number"),
    "status": (
        "import sys\nprint(0.5)\nsys.exit('the service\\n is away')",
        "ended with status 1; it said: the service is away",
    ),
    "signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9"),
    "exception": ("print(0.5)\nraise ValueError('no key')", "ended with status 1; it said: Traceback"),
    "a gigabyte": (
        "import sys\nfor _ in range(16384):\n    sys.stdout.write('1' * 65536)",
        "wrote more than 65,536 bytes where a number was asked for",
    ),
}


@pytest.mark.parametrize(("program", "expected"), FAILS.values(), ids=FAILS)
def test_what_went_wrong_is_said(program: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(MetricError) as caught:
        asked(program, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"metric maximize:judge: {sys.executable} judge.py ")
    assert expected in said
    assert len(said.splitlines()) == 1
    assert len(said) < 1200
    assert len(caplog.records) == 2  # it was asked three times


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    program = "import sys, time\nprint('thinking', file=sys.stderr, flush=True)\ntime.sleep(600)"
    with pytest.raises(MetricError, match=r"took longer than 0\.3 s"):
        asked(program, tmp_path, timeout=0.3)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    own = OwnMetric(name="minimize:x", command=("./no-such-judge",), folder=str(tmp_path))
    with pytest.raises(MetricError, match=r"metric minimize:x: \./no-such-judge cannot be started: No such file"):
        judge(own, ROWS)


OUTLIVES = """
import os, sys, time
if os.fork() == 0:
    {escape}
    open('child', 'w').write(str(os.getpid()))
    time.sleep(600)
while not os.path.exists('child') or not open('child').read():
    time.sleep(0.01)
{then}
"""


@pytest.mark.parametrize("escape", ["pass", "os.setsid()"], ids=["in its group", "out of its group"])
@pytest.mark.parametrize("then", ["print(0.25)", "time.sleep(600)"], ids=["answers", "hangs"])
def test_no_child_outlives_the_call(escape: str, then: str, tmp_path: Path) -> None:
    """The child holds the pipes open, too: an answer is not waited for any longer than the program lives."""
    hangs = pytest.raises(MetricError) if then != "print(0.25)" else contextlib.nullcontext()
    with hangs:
        assert (
            asked(OUTLIVES.format(escape=escape, then=then), tmp_path, timeout=2 if then != "print(0.25)" else 60)
            == 0.25
        )
    child = (tmp_path / "child").read_text(encoding="utf-8")
    deadline = time.monotonic() + 20
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not lives(child)


def lives(process: str) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_judge_that_fails_now_and_then_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One call in a hundred fails, over 200 predictions."""
    (tmp_path / "judge.sh").write_text(
        "n=$(($(cat calls 2>/dev/null || echo 0) + 1)); echo $n > calls\n"
        'if [ $((n % 100)) = 0 ]; then echo "busy at $n" >&2; exit 3; fi\necho 0.5\n',
        encoding="utf-8",
    )
    own = OwnMetric(name="maximize:judge", command=("sh", "judge.sh"), folder=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        found = [judge(own, [{**ROWS[0], "row": number}]) for number in range(200)]
    assert found == [0.5] * 200
    assert [record.getMessage() for record in caplog.records] == [
        f"metric maximize:judge: sh judge.sh ended with status 3; it said: busy at {call}; asking again"
        for call in (100, 200)
    ]
    assert int((tmp_path / "calls").read_text(encoding="utf-8")) == 202
