"""Whatever the bytes, a space file is either loaded or refused by ConfigError, soon and in single lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from automl.errors import ConfigError
from automl.space.load import load_space, parse_space
from automl.space.spec import SweepSpec

PRESETS = Path(__file__).parents[2] / "search_spaces"
VALID = [path.read_text(encoding="utf-8") for path in sorted(PRESETS.glob("*.yaml"))]
# fmt: off
WORDS = [
    "version", "study", "model", "task", "data", "type", "metric", "split", "seed", "space", "rank", "alpha",
    "alpha_ratio", "dropout", "target", "learning_rate", "low", "high", "log", "step", "choices", "when", "fixed",
    "enqueue", "constraints", "search", "sampler", "pruner", "name", "trials", "steps", "run", "storage", "url",
    "targets", "hub", "folder", "gguf", "package", "path", "file", "files", "columns", "auto", "int", "float",
    "categorical", "tpe", "peer", "grid", "qv", "all-linear",
]
FRAGMENTS = [
    *WORDS, ": ", "- ", "{", "}", "[", "]", ",", "\n", "\n  ", "#", "'", '"', "&a", "*a", "!!int", "<<", "|", ">", "?",
    "1e-4", "1e999", ".nan", "010", "-1", "0", "9" * 30, "on", "null", "\t", "\x00", "\ud7ff", "%YAML 1.1\n", "---\n",
]
# fmt: on
SLOWEST_SECONDS = 2.0
RELAXED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
KEYS = st.sampled_from(WORDS) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)


def outcome(load: Callable[[], SweepSpec]) -> SweepSpec | ConfigError:
    """What loading gives; any other exception is a failure of the test."""
    try:
        return load()
    except ConfigError as error:
        return error


def check(load: Callable[[], SweepSpec]) -> None:
    """Only ConfigError may come out of loading, in good time, with each problem in one printable line."""
    start = time.process_time()  # not the wall clock: other tests may share the processor
    result = outcome(load)
    assert time.process_time() - start < SLOWEST_SECONDS
    if isinstance(result, ConfigError):
        lines = str(result).splitlines()
        assert len(lines) == len(result.problems) > 0
        assert all(line.isprintable() for line in lines)


def check_text(text: str) -> None:
    check(lambda: parse_space(text, "s.yaml", Path("/nowhere")))


@RELAXED
@given(st.binary(max_size=400))
@example(b"\xff\xfea\x00")
@example(b"a: \xed\xa0\x80")
def test_any_bytes(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "s.yaml"
        file.write_bytes(content)
        check(lambda: load_space(file))


@RELAXED
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    check_text(text)


@RELAXED
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=60))
def test_any_sequence_of_yaml_pieces(pieces: list[str]) -> None:
    check_text("".join(pieces))


@RELAXED
@given(JSON)
def test_any_json(value: object) -> None:
    check_text(json.dumps(value))


@RELAXED
@given(st.dictionaries(st.sampled_from(WORDS), JSON, max_size=6))
def test_any_json_in_the_place_of_sections(sections: dict[str, object]) -> None:
    head = {"version": 1, "study": "s", "model": "m", "task": {"type": "completion", "data": "a.csv"}}
    check_text(json.dumps({**head, **sections}))


@RELAXED
@given(st.sampled_from(VALID), st.data())
def test_any_edit_of_a_valid_file(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        removed = data.draw(st.integers(0, 20))
        text = text[:place] + data.draw(st.sampled_from(FRAGMENTS)) + text[place + removed :]
    check_text(text)
