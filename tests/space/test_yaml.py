"""The strict reading of YAML: which scalars are what, and where each value stands."""

from __future__ import annotations

import pytest

from automl.errors import ConfigError
from automl.space.yaml_nodes import Position, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-5E+2", -500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0.0", 0.0),
        ("00.5x", "00.5x"),
        ("1_000", 1000),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'on'", "on"),
        ('"010"', "010"),
        ("'1'", "1"),
        ("north", "north"),
        ("=", "="),
    ],
)
def test_scalars_are_read_without_the_surprises_of_yaml_1_1(text: str, value: object) -> None:
    document = read_document(f"key: {text}\n", "s.yaml")
    assert document.mistakes == ()
    assert document.value == {"key": value}
    assert isinstance(document.value, dict)
    assert type(document.value["key"]) is type(value)


@pytest.mark.parametrize(
    "text", ["on", "Off", "YES", "no", "010", "0o17", "0b1", "00", "01.5", "-.INF", ".NaN", "1e400"]
)
def test_scalars_with_two_readings_are_refused(text: str) -> None:
    (mistake,) = read_document(f"key: {text}\n", "s.yaml").mistakes
    assert mistake[:2] == (("key",), Position(1, 6))


def test_places_count_from_one_and_survive_a_byte_order_mark() -> None:
    document = read_document("\ufeffa: 1\nb:\n  - x\n  - {c: y}\n", "s.yaml")
    assert document.places[("a",)] == Position(1, 4)
    assert document.places[("b", 1, "c")] == Position(4, 9)
    assert document.key_places[("b", 1, "c")] == Position(4, 6)


def test_windows_line_ends_are_lines() -> None:
    assert read_document("a: 1\r\nb: 2\r\n", "s.yaml").places[("b",)] == Position(2, 4)


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    with pytest.raises(ConfigError, match=r"s\.yaml:1:5: anchor '&l0' is not allowed"):
        read_document(f"l0: &l0 [x]\n{levels}\n", "s.yaml")


def test_huge_escapes_are_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        read_document('key: "\\UFFFFFFFF"\n', "s.yaml")
    assert len(str(caught.value).splitlines()) == 1
