"""Tags of words: which token carries them, what an entity is, and every way they can be wrong, in one line each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Prepared
from automl.tasks.tags import Entity, entities, entity_f1, first_tokens, orphans

Settings = Callable[..., TaskSettings]
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"words": ["good", "film", f"w{n}", "plot"], "tags": ["O", "B-PER", "I-PER" if n % 2 else "O", "B-LOC"]}
        for n in range(count)
    ]


def lines(given: Sequence[dict[str, Any]], *more: str) -> str:
    return "".join(f"{line}\n" for line in (*map(json.dumps, given), *more))


def row(words: str, tags: str) -> str:
    """Forty good rows, then one with these words and tags, as JSON."""
    return lines(rows(), f'{{"words": {words}, "tags": {tags}}}')


def prepared(settings: TaskSettings, tokenizer: Any, folder: Path) -> Prepared:
    return make_task(settings).prepare(tokenizer, folder / "cache")


def test_a_tag_is_at_the_first_token_of_its_word(settings_for: Settings, plain_tokenizer: Any, tmp_path: Path) -> None:
    one = {"words": ["ab", "caf\u00e9", "x y", "\U0001f600!"], "tags": ["B-PER", "O", "I-PER", "B-PER"]}
    settings = settings_for("token_classification", train=lines(rows()), validation=lines([one]), metric="entity_f1")
    task, made = make_task(settings), prepared(settings, plain_tokenizer, tmp_path)
    assert made.labels == ("B-LOC", "B-PER", "I-PER", "O")
    (found,) = task.rows(made, "validation")
    assert plain_tokenizer.decode(found["input_ids"]) == "ab caf\u00e9 x y \U0001f600!"
    labelled = [(number, tag) for number, tag in enumerate(found["labels"]) if tag != IGNORED]
    assert [made.labels[tag] for _, tag in labelled] == one["tags"]
    # Bytes are tokens here, and a space belongs to the token after it or stands alone.
    before = [len(plain_tokenizer(text)["input_ids"]) for text in ("", "ab", "ab caf\u00e9", "ab caf\u00e9 x y")]
    starts = [number for number, _ in labelled]
    assert all(start - count in (0, 1) for start, count in zip(starts, before, strict=True)), (starts, before)


def test_special_tokens_carry_no_tag(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    settings = settings_for("token_classification", train=lines(rows()), metric="entity_f1", max_length=4)
    task, made = make_task(settings), prepared(settings, bert_tokenizer, tmp_path)
    for found in task.rows(made, "train"):
        assert len(found["input_ids"]) == len(found["labels"]) == 4
        assert (found["labels"][0], found["labels"][3]) == (IGNORED, IGNORED)
        assert IGNORED not in found["labels"][1:3]  # the third and fourth word are cut
    assert any("max_length 4 cuts" in note for note in made.notes)


def test_spans_of_tokens_may_begin_with_a_space() -> None:
    # "ab cd": one token for the first word, then " c" and "d"; a space of its own and nothing belong to no word.
    assert first_tokens(["ab", "cd"], [(0, 0), (0, 2), (2, 4), (4, 5), (0, 0)]) == {0: 1, 1: 2}
    assert first_tokens(["ab", "cd"], [(0, 2), (2, 3), (3, 5)]) == {0: 0, 1: 2}
    assert first_tokens(["ab", "cd"], [(0, 2)]) == {0: 0}


BAD = {
    "no tags": (lines([{"words": ["a"], "tag": ["O"]}] * 3), "no column 'tags'; columns are 'words', 'tag'"),
    "no words": (lines([{"word": ["a"], "tags": ["O"]}] * 3), "no column 'words'; columns are 'word', 'tags'"),
    "null tags": (row('["a"]', "null"), "row 41, column 'tags': is NoneType None; a list is needed"),
    "null words": (row("null", '["O"]'), "row 41, column 'words': is NoneType None; a list is needed"),
    "text for words": (row('"a b"', '["O"]'), "column 'words': is 'a b'; a list is needed, in CSV as JSON text"),
    "text for tags": (row('["a", "b"]', '"O O"'), "column 'tags': is 'O O'; a list is needed, in CSV as JSON text"),
    "a number": (row("3", '["O"]'), "column 'words': is int 3; a list is needed"),
    "an object": (row('["a"]', '{"0": "O"}'), "column 'tags': is dict {'0': 'O'}; a list is needed"),
    "too few tags": (row('["a", "b"]', '["O"]'), "row 41, column 'tags': 1 tags for 2 words; each word needs one"),
    "too many tags": (row('["a"]', '["O", "O"]'), "row 41, column 'tags': 2 tags for 1 words; each word needs one"),
    "empty lists": (row("[]", "[]"), "row 41, column 'words': is an empty list; every row needs a word"),
    "empty word": (row('["a", ""]', '["O", "O"]'), "row 41, column 'words': word 2 is empty"),
    "blank word": (row('[" "]', '["O"]'), "row 41, column 'words': word 1 is empty"),
    "blanks around": (row('["a\\n"]', '["O"]'), "word 1 is 'a\\n'; words have no blanks around them"),
    "null word": (row('["a", null]', '["O", "O"]'), "word 2 is null"),
    "number as word": (row('["a", 5]', '["O", "O"]'), "word 2 is int 5; a string is needed"),
    "list as word": (row('["a", ["b"]]', '["O", "O"]'), "word 2 is list ['b']; a string is needed"),
    "NUL": (row('["a\\u0000"]', '["O"]'), "word 1 holds a NUL character at position 1"),
    "half a surrogate": (row('["a\\ud800"]', '["O"]'), "word 1 holds half a surrogate pair"),
    "null tag": (row('["a"]', "[null]"), "row 41, column 'tags': label is None"),
    "NaN tag": (row('["a"]', "[NaN]"), "row 41, column 'tags': label is nan"),
    "empty tag": (row('["a"]', '[""]'), "row 41, column 'tags': label is ''"),
    "fraction": (row('["a"]', "[0.5]"), "label is float 0.5; a string or a whole number is needed"),
    "numbers among names": (row('["a"]', "[3]"), "row 41, column 'tags': holds a number, but row 1 a text; one type"),
    "three kinds": (row('["a", "b"]', "[3, true]"), "row 41, column 'tags': holds a number, but row 1 a text"),
    "truth values": (row('["a"]', "[true]"), "row 41, column 'tags': holds a truth value, but row 1 a text"),
    "no prefix": (
        row('["a"]', '["PER"]'),
        "tag 'PER' is neither O nor B-\u2026 or I-\u2026, as 'B-LOC' is; IOB2 is read",
    ),
    "another scheme": (row('["a"]', '["S-PER"]'), "tag 'S-PER' is neither O nor B-\u2026 or I-\u2026, as 'B-LOC' is"),
    "lower case": (row('["a"]', '["b-PER"]'), "tag 'b-PER' is neither O nor B-\u2026 or I-\u2026"),
    "zero for O": (row('["a"]', '["0"]'), "tag '0' is neither O nor B-\u2026 or I-\u2026"),
    "no kind": (row('["a"]', '["B-"]'), "tag 'B-' names no kind of entity; B-PER does"),
    "long tag": (row('["a"]', '["%s"]' % ("y" * 300)), "label has 300 characters; is 'tags' really the column"),
    "one tag": (lines([{"words": [f"w{n}"], "tags": ["O"]} for n in range(30)]), "only one tag, 'O', in 30 rows"),
    "a tag for each word": (
        lines([{"words": [f"w{n}"], "tags": [f"t{n}"]} for n in range(1200)]),
        "more than 1,000 tags; is it really the column of the tags?",
    ),
    "parts of speech": (
        lines([{"words": ["a", f"w{n}"], "tags": ["DET", "NOUN"]} for n in range(30)]),
        "tags are 'DET', 'NOUN'; entity_f1 needs O, B-\u2026 and I-\u2026 (metric: tag_accuracy does not)",
    ),
    "one row": (lines(rows(1)), "1 rows leave none for"),
    "empty": ("", "is empty (0 bytes)"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_tags_are_named_in_one_line(settings_for: Settings, tmp_path: Path, content: str, message: str) -> None:
    settings = settings_for("token_classification", train=content, metric="entity_f1")
    with pytest.raises(DataError) as caught:
        prepared(settings, None, tmp_path)  # nothing is tokenised
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tag_of_validation_alone_cannot_be_learnt(settings_for: Settings, tmp_path: Path) -> None:
    odd = lines([{"words": ["a"], "tags": ["B-ORG"]}])
    settings = settings_for("token_classification", train=lines(rows()), validation=odd, metric="loss")
    with pytest.raises(DataError, match="row 1, column 'tags': class 'B-ORG' of validation never occurs in train"):
        prepared(settings, None, tmp_path)


def test_a_word_without_a_token_is_named(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    odd = lines(rows(), '{"words": ["good", "\\u200b", "film"], "tags": ["O", "O", "O"]}')
    settings = settings_for("token_classification", train=odd, metric="loss")
    bert_tokenizer.backend_tokenizer.normalizer = _cleaning()
    try:
        with pytest.raises(DataError, match=r"row 41: word 2, .*, is no token of this model; take it out, and its tag"):
            prepared(settings, bert_tokenizer, tmp_path)
    finally:
        bert_tokenizer.backend_tokenizer.normalizer = None


def _cleaning() -> Any:
    """What BERT does: control and format characters are gone."""
    from tokenizers.normalizers import BertNormalizer

    return BertNormalizer()


def test_tags_that_begin_in_the_middle_are_said(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    odd = lines(rows(), '{"words": ["good", "film"], "tags": ["O", "I-PER"]}')
    settings = settings_for("token_classification", train=odd, metric="entity_f1")
    notes = "\n".join(prepared(settings, bert_tokenizer, tmp_path).notes)
    assert "row 41: an I- tag continues nothing of its kind, as in 1 of 41 rows; it begins an entity" in notes


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("I-PER I-PER O I-PER", [("PER", 0, 2), ("PER", 3, 4)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == [Entity(*each) for each in expected]


def _conlleval(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities by the rules for their ends and starts that conlleval and seqeval state, tag by tag."""
    found, start = set(), 0
    padded = [("O", ""), *((tag[0], tag[2:]) for tag in tags), ("O", "")]
    for place in range(1, len(padded)):
        (before, kind), (now, other) = padded[place - 1], padded[place]
        ends = before in "BI" and (now in "BO" or kind != other)
        starts = now in "BI" and (now == "B" or before == "O" or kind != other)
        if ends:
            found.add((kind, start, place - 1))
        if starts:
            start = place - 1
    return found


def test_every_short_row_has_the_entities_of_the_rules() -> None:
    for count in range(1, 6):
        for tags in itertools.product(TAGS, repeat=count):
            assert {tuple(each) for each in entities(tags)} == _conlleval(tags), tags
            assert (orphans(tags) > 0) == any(
                tag[0] == "I" and (place == 0 or tags[place - 1][2:] != tag[2:] or tags[place - 1] == "O")
                for place, tag in enumerate(tags)
            )


def test_entity_f1_counts_whole_entities() -> None:
    # The example of seqeval's README: one of two entities has its borders right.
    truth = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entity_f1(truth, said) == 0.5
    assert entity_f1(truth, truth) == 1.0
    assert entity_f1([["O"]], [["O"]]) == 0.0
    assert entity_f1([["B-PER"]], [["B-LOC"]]) == 0.0


class _Says(torch.nn.Module):
    """A model that says the tag whose id is the token's, of what it is asked."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.tags = tags

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self.logits = torch.nn.functional.one_hot(input_ids % self.tags, self.tags).float()
        return self


def test_words_alone_are_measured(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    settings = settings_for("token_classification", train=lines(rows()), metric="entity_f1")
    made = prepared(settings, bert_tokenizer, tmp_path)
    task = make_task(settings).on(made)
    given = [
        {"input_ids": [2, 0, 1, 3, 3], "labels": [IGNORED, 0, 1, IGNORED, IGNORED]},
        {"input_ids": [2, 3, 1, 3], "labels": [IGNORED, 3, 0, IGNORED]},
    ]
    scores = task.evaluate(_Says(4), iter([task.collate(given, 0)]), bert_tokenizer)
    assert scores["tag_accuracy"] == 0.75  # three of four words, and no token beside them
    assert scores["entity_f1"] == pytest.approx(2 * 2 / (3 + 3))
