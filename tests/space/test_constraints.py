"""Conditions: what they accept, how far they are missed, and that nothing else can be evaluated."""

from __future__ import annotations

import math
import pickle

import pytest

from automl.space.constraints import UNDEFINED, parse_constraint
from automl.space.limits import KINDS
from automl.trial import Scalar

VALUES: dict[str, Scalar] = {"rank": 8, "alpha": 16.0, "target": "qv", "use_rslora": False, "trainable_params": 300_000}


@pytest.mark.parametrize(
    ("expression", "violation"),
    [
        ("trainable_params <= 500_000", -200_000),
        ("trainable_params <= 200_000", 100_000),
        ("rank >= 8", 0),
        ("alpha == 2 * rank", 0),
        ("alpha == rank", 8),
        ("1 < rank <= 6", 2),
        ("rank in [4, 8]", 0),
        ("rank not in [4, 8]", 1),
        ("target == 'qv'", 0),
        ("target in ('mlp', 'attention')", 1),
        ("not use_rslora", 0),
        ("use_rslora", 1),
        ("use_rslora == False", 0),
        ("rank <= 4 or target == 'qv'", 0),
        ("rank <= 4 and target == 'qv'", 4),
        ("not (rank <= 4 or alpha > 20)", -4),
        ("log2(rank) <= 3", 0),
        ("min(rank, alpha) - abs(-3) <= 4", 1),
        ("max(rank, 2, alpha) // 3 == 5", 0),
        ("-rank + 2 ** 3 % 3 <= 0", -6),
        ("rank / 0 < 1", UNDEFINED),
        ("9.0 ** 9 ** 9 > rank", UNDEFINED),
        ("log2(-rank) < 1", UNDEFINED),
        ("(-rank) ** 0.5 < 1", UNDEFINED),
    ],
)
def test_violation_says_how_much_is_missed(expression: str, violation: float) -> None:
    constraint = parse_constraint(expression)
    constraint.check_kinds(KINDS)
    assert constraint.violation(VALUES) == violation


@pytest.mark.parametrize(
    "expression",
    [
        "dropout in [0.1, 0.3]",
        "dropout == 0.3",
        "dropout <= 0.3",
        "0.3 >= dropout",
        "not dropout > 0.3",
        "not (dropout < 0.3)",
        "not (dropout != 0.3)",
        "not (dropout not in [0.3])",
        "dropout - 0.1 - 0.2 == 0",
        "dropout % 0.1 == 0",
        "dropout // 0.1 == 3",
        "dropout * 3 == 0.9",
    ],
)
def test_numbers_that_differ_by_rounding_alone_are_equal(expression: str) -> None:
    for dropout in (0.3, 0.1 + 0.2, 0.1 * 3, 0.29999999999999993):
        assert parse_constraint(expression).violation({"dropout": dropout}) <= 0


@pytest.mark.parametrize("expression", ["dropout < 0.3", "dropout > 0.3", "dropout != 0.3", "dropout not in [0.3]"])
def test_what_is_equal_is_neither_less_nor_more_nor_other(expression: str) -> None:
    assert parse_constraint(expression).violation({"dropout": 0.1 + 0.2}) > 0


def test_whole_numbers_are_never_taken_for_their_neighbours() -> None:
    at_most = parse_constraint("trainable_params <= 700_000_000_000")
    assert at_most.violation({"trainable_params": 700_000_000_001}) > 0


def test_a_strict_comparison_of_equal_numbers_is_violated() -> None:
    assert 0 < parse_constraint("rank < 8").violation(VALUES) < 1e-9
    assert parse_constraint("not rank < 8").violation(VALUES) <= 0


def test_a_huge_power_ends_at_once() -> None:
    # Whole numbers would need gigabytes; every operand is a float.
    assert parse_constraint("9 ** 9 ** 9 ** rank > 1").violation(VALUES) == UNDEFINED
    assert math.isfinite(UNDEFINED)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("rank", "'rank' is a number, not a condition"),
        ("target", "'target' is a text, not a condition"),
        ("target < 3", "target is a text where a number is needed"),
        ("target == 3", "3 is a number where a text is needed"),
        ("rank and use_rslora", "rank is a number where a truth is needed"),
        ("use_rslora + 1 > 0", "use_rslora is a truth where a number is needed"),
        ("rank in 8", r"write a list to the right of 'in', such as \[4, 8\], not 8"),
        ("rank in []", "write a list to the right of 'in'"),
        ("rank in ['qv']", "'qv' is a text where a number is needed"),
        ("rank == [8]", r"\[8\] can only stand to the right of 'in'"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_constraint(expression).check_kinds(KINDS)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('ls')",
        "(rank + 1).real > 1",
        "rank.real.imag > 1",
        "[r for r in (rank,)]",
        "(lambda: rank)() > 1",
        "rank if rank else 2",
        "f'{rank}' == '8'",
        "rank[0] > 1",
        "(r := rank) > 1",
        "rank > 1, rank > 2; import os",
        "rank > b'1'",
        "rank > 1j",
        "rank is 8",
        "~rank > 1",
        "rank << 9 > 1",
        "min(rank) > 1",
        "abs(rank, 2) > 1",
        "min(*rank) > 1",
        "max(rank, key=abs) > 1",
        "{rank} == {8}",
        "rank >",
        "",
        "   ",
        "rank > 1e999",
        "-" * 100 + "rank > 1",
        "(" * 250 + "rank" + ")" * 250,
        "rank > 1 or " * 30 + "rank > 1",
        "rank > \x00",
        "1 < 2",
    ],
)
def test_everything_outside_the_grammar_is_refused_in_one_line(expression: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_constraint(expression)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_names_are_those_read_not_those_called() -> None:
    assert parse_constraint("min(rank, alpha) < log2(trainable_params)").names == {"rank", "alpha", "trainable_params"}


def test_a_missing_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="dropout"):
        parse_constraint("dropout < 1").violation(VALUES)


def test_a_constraint_survives_pickling() -> None:
    constraint = parse_constraint("rank * 2 <= alpha")
    copy = pickle.loads(pickle.dumps(constraint))
    assert copy == constraint
    assert copy.violation(VALUES) == 0
