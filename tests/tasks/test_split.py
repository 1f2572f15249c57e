from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from automl.errors import DataError
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks.labels import check_classes, rare_classes, sort_labels
from automl.tasks.split import Example, Examples, contents_hash, position, split_examples, split_notes


def settings(**values: float) -> TaskSettings:
    data = DataSettings(kind="files", files={"train": "train.csv"})
    return TaskSettings(type="classification", data=data, metric="accuracy", **values)  # type: ignore[arg-type]


def examples(texts: Sequence[str], label: str | None = "a", file: str = "train.csv") -> list[Example]:
    return [Example(file, row, text, (text,), label) for row, text in enumerate(texts, start=2)]


TEXTS = [f"text number {number}" for number in range(2000)]


def texts_of(splits: Examples) -> dict[str, set[str]]:
    return {split: {example.text for example in rows} for split, rows in splits.items()}


def test_shares_are_met() -> None:
    splits = split_examples({"train": examples(TEXTS)}, settings(test_share=0.2, validation_share=0.1))
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sum(sizes.values()) == 2000
    # Each row is one draw: four standard deviations around the expected size.
    assert sizes["test"] == pytest.approx(400, abs=72)
    assert sizes["validation"] == pytest.approx(200, abs=54)


def test_a_row_keeps_its_split_whatever_the_order_and_the_other_rows() -> None:
    whole = texts_of(split_examples({"train": examples(TEXTS)}, settings()))
    some = random.Random(0).sample(TEXTS, 300)
    part = texts_of(split_examples({"train": examples(some)}, settings()))
    for split, texts in part.items():
        assert texts <= whole[split]


def test_rows_with_the_same_text_never_part() -> None:
    copies = examples([f" {text}\n" for text in TEXTS[:200]], "b")
    splits = split_examples({"train": examples(TEXTS[:200], "a") + copies}, settings())
    train, validation, test = ({text.strip() for text in texts} for texts in texts_of(splits).values())
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == 200


def test_the_seed_decides() -> None:
    first, again, other = (split_examples({"train": examples(TEXTS)}, settings(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first["test"] != other["test"]


def test_the_test_split_does_not_depend_on_the_share_of_validation() -> None:
    first, second = (split_examples({"train": examples(TEXTS)}, settings(validation_share=x)) for x in (0.1, 0.4))
    assert first["test"] == second["test"]


def test_the_position_of_a_text_never_changes() -> None:
    # Written down: a change would reshuffle every data set that is in use.
    assert position("a  b\n", 7) == position("a b", 7) == 0.9297418948173053


def test_splits_of_the_data_are_kept() -> None:
    own = {
        "train": examples(TEXTS[:100]),
        "validation": examples(TEXTS[100:110]),
        "test": examples(TEXTS[110:130]),
    }
    assert split_examples(own, settings()) == own  # type: ignore[arg-type]


def test_a_missing_split_is_cut_from_train() -> None:
    test = examples(TEXTS[1000:])
    splits = split_examples({"train": examples(TEXTS[:1000]), "test": test}, settings(validation_share=0.25))
    assert splits["test"] == test
    assert len(splits["validation"]) == pytest.approx(250, abs=55)
    assert len(splits["train"]) + len(splits["validation"]) == 1000


def test_a_share_of_zero_cuts_nothing() -> None:
    splits = split_examples({"train": examples(TEXTS)}, settings(test_share=0.0))
    assert splits["test"] == []
    assert "no test rows" in split_notes(splits, settings())[0]


def test_no_validation_rows_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^train.csv: 2000 rows leave none for validation \(cut off: test 0.2\)"):
        split_examples({"train": examples(TEXTS)}, settings(validation_share=0.0))


def test_every_class_of_cut_data_is_in_train() -> None:
    rows = examples(TEXTS, "a") + [example._replace(label=f"rare {example.row}") for example in examples(TEXTS[:50])]
    splits = split_examples({"train": rows}, settings())
    trained = {example.label for example in splits["train"]}
    assert {example.label for split in splits.values() for example in split} == trained
    # The rows that moved took their copies along.
    assert not texts_of(splits)["train"] & texts_of(splits)["test"]


def few(label: str, number: int) -> list[Example]:
    return examples([f"{label} {place}" for place in range(number)], label)


def classes_of(splits: Examples) -> dict[str, set[str | None]]:
    return {split: {example.label for example in rows} for split, rows in splits.items()}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_with_three_texts_is_in_every_split(seed: int) -> None:
    labels = {f"class {number}" for number in range(40)}
    rows = [row for label in sorted(labels) for row in few(label, 3)]
    splits = split_examples({"train": rows}, settings(seed=seed))
    assert classes_of(splits) == {"train": labels, "validation": labels, "test": labels}
    assert not split_notes(splits, settings(seed=seed))
    assert split_examples({"train": rows[::-1]}, settings(seed=seed))["test"] != []


def test_a_share_too_small_for_any_row_cuts_none() -> None:
    assert split_examples({"train": few("a", 20) + few("b", 20)}, settings(test_share=0.0001))["test"] == []


def test_copies_move_together_and_no_class_leaves_train() -> None:
    # Both classes have the text "same", and "rare" has no other: it can only stay in train.
    rows = [*few("often", 30), *examples(["same"], "often"), *examples([" same "], "rare")]
    splits = split_examples({"train": rows}, settings())
    assert [example.text for example in splits["train"] if example.text.strip() == "same"] == ["same", " same "]
    assert [note for note in split_notes(splits, settings()) if "holds" in note] == [
        "validation holds no row of 1 of 2 classes ('rare'); no trial is judged by them",
        "test holds no row of 1 of 2 classes ('rare')",
    ]


def test_classes_that_evaluations_do_not_see_are_named() -> None:
    rows = [*few("often", 400), *few("rare", 6)]
    splits = split_examples({"train": rows}, settings(evaluate_rows=1))
    notes = split_notes(splits, settings(evaluate_rows=1))
    assert notes == [
        "the 1 validation rows that evaluations use hold none of 1 of 2 classes ('rare'); see task.evaluate_rows"
    ]


def test_the_splits_of_studies_by_the_first_rules_stay_what_they_were() -> None:
    # Written down with the code that knew no other rules: a change would end every such study that is not finished.
    rows = [row for number in range(40) for row in few(f"class {number}", 3)]
    splits = split_examples({"train": rows}, settings(rules=1))
    assert {split: len(found) for split, found in splits.items()} == {"train": 84, "validation": 18, "test": 18}
    assert contents_hash(splits) == "e95ba4be012960a73142f59ec90e75de68095a4c9074d668079e9fe11da17148"


def test_copies_across_given_splits_are_reported() -> None:
    train, test = examples(TEXTS[:50]), examples(TEXTS[48:60])
    splits = split_examples({"train": train, "validation": examples(TEXTS[60:70]), "test": test}, settings())
    assert split_notes(splits, settings()) == ["2 of 12 test rows have a text that is also in train"]


def test_contents_hash_sees_every_value_and_the_split() -> None:
    base: Examples = {"train": examples(["x", "y"]), "validation": examples(["z"]), "test": []}
    moved: Examples = {"train": examples(["x"]), "validation": examples(["y", "z"]), "test": []}
    relabelled: Examples = {**base, "validation": examples(["z"], "b")}
    elsewhere: Examples = {**base, "train": examples(["x", "y"], file="other.csv")}
    assert contents_hash(elsewhere) == contents_hash(base)
    assert len({contents_hash(each) for each in (base, moved, relabelled)}) == 3


SORTED = {
    "numbers": (["10", "9", "-1", "0"], ("-1", "0", "9", "10")),
    "names with numbers": (["item 10", "item 2", "item 2"], ("item 2", "item 10")),
    "case": (["b", "A", "a", "C"], ("A", "a", "b", "C")),
    "mixed": (["LOC", "1", "ENTY"], ("1", "ENTY", "LOC")),
    "very long number": (["9" * 30, "1"], ("1", "9" * 30)),
}


@pytest.mark.parametrize(("names", "expected"), SORTED.values(), ids=SORTED)
def test_labels_are_sorted_as_people_do(names: list[str], expected: tuple[str, ...]) -> None:
    assert sort_labels(names) == expected


def test_a_class_seen_once_is_reported() -> None:
    rows = (
        examples(["x", "y"], "ham") + examples(["z", "w"], "spam") + [Example("train.csv", 1, "SMS", ("SMS",), "Label")]
    )
    assert check_classes({"train": rows}, "train.csv", "label") == ("ham", "Label", "spam")
    assert rare_classes({"train": rows}) == [
        "train.csv, row 1: class 'Label' occurs only once in 5 rows; a stray header row, or a class too rare to learn"
    ]


def test_many_rare_classes_take_few_lines() -> None:
    rows = [Example("train.csv", row, f"text {row}", (f"text {row}",), f"id {row}") for row in range(2, 100)]
    lines = rare_classes({"train": rows})
    assert len(lines) == 4
    assert lines[-1] == "98 classes in all occur only once"
