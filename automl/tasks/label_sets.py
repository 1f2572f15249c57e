"""Sets of labels: how a row writes them, and how predicted ones are held against true ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence

from automl.metric import Metric
from automl.tasks.fields import Record, check_label, check_one_kind, fault, is_missing, shown, take

_SETS = ("multi_label",)


def take_names(column: str, separator: str) -> Callable[[Record], list[str]]:
    """Reads the labels of the records of one file, a list that may be empty, in the order of the row.

    A text holds names between separators, or a list as JSON. Raises DataError for a row without a value, for what is
    no name, for a name that is there twice, and for names of another kind than those of earlier rows.
    """
    kinds: dict[str, int] = {}

    def read(record: Record) -> list[str]:
        found = [check_label(record, column, value) for value in _listed(record, column, separator)]
        names = [label.name for label in found]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise fault(record, column, f"label {shown(twice[0])} is there twice")
        check_one_kind(record, column, found, kinds)
        return names

    return read


def _listed(record: Record, column: str, separator: str) -> list[object]:
    value = take(record, column)
    if isinstance(value, list):
        return value
    if isinstance(value, str) and not is_missing(value):
        if value.lstrip().startswith("["):
            return _from_json(record, column, value)
        return [name.strip() for name in value.split(separator)]
    if is_missing(value):
        raise fault(record, column, f"labels are {shown(value)}; a row to which none applies has an empty list, []")
    raise fault(record, column, f"labels are {type(value).__name__} {shown(value)}; a list of names is needed")


def _from_json(record: Record, column: str, text: str) -> list[object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise fault(record, column, f"labels are {shown(text)}, which begins like a list and is no JSON")
    return found


MICRO_F1 = Metric("maximize", 0.0, 1.0, _SETS)
SUBSET_ACCURACY = Metric("maximize", 0.0, 1.0, _SETS)


def f1_scores(truth: Sequence[Sequence[int]], predicted: Sequence[Sequence[int]]) -> dict[str, float]:
    """micro_f1 over all labels of all rows, and macro_f1, the mean over labels that occur in truth or predictions.

    Both are 0 where nothing is true and nothing predicted. Source: as in scikit-learn, with zero_division=nan.
    """
    hits = Counter(name for a, b in zip(truth, predicted, strict=True) for name in set(a) & set(b))
    sizes = Counter(name for rows in (truth, predicted) for row in rows for name in row)  # 2 tp + fn + fp
    if not sizes:
        return {"micro_f1": 0.0, "macro_f1": 0.0}
    by_label = [2 * hits[name] / size for name, size in sizes.items()]
    return {"micro_f1": 2 * hits.total() / sizes.total(), "macro_f1": math.fsum(by_label) / len(by_label)}
