"""Tokenised rows on disk: built once, found by content afterwards, mapped into memory by every worker.

Layout: `<cache>/data/<key>/{train,validation,test}/` as `datasets` saves them, and `prepared.json`. The key covers
everything the rows depend on. A folder appears by one rename of a finished, synced one, so a half-built one is never
seen; a lock file per key makes the others wait for the first builder instead of repeating its work. The lock is gone
with its holder, however that ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from automl import durable
from automl.errors import DataError, ResourceError
from automl.head import Scale, scale_from_json, scale_to_json
from automl.space.spec import TaskSettings
from automl.tasks.base import Prepared, Row, Share
from automl.tasks.joining import POSITIONS, join_rows
from automl.tasks.mixture import MixedRows, mixture_notes
from automl.tasks.quiet import quiet_datasets, single_threaded_tokenizers
from automl.tasks.read import SPLITS, Split, source_name
from automl.tasks.reading import BadRows
from automl.tasks.rows import MappedRows
from automl.tasks.split import Example, Examples, check_parts, contents_hash

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout on disk; part of every key."""

_CHUNK = 1000
_MANIFEST = "prepared.json"


class Encoded(NamedTuple):
    """One tokenised example.

    row: None if max_length leaves nothing to learn, or it cannot be used. tokens: before any cut. is_unfinished: the
    end of an answer is cut off, and with it the token that says so. error: why it cannot be used. target: tokens of a
    target that is apart from the text, before any cut.
    """

    row: Row | None
    tokens: int
    is_unfinished: bool = False
    error: DataError | None = None
    target: int = 0


Encode = Callable[[Sequence[Example]], Sequence[Encoded]]
"""Tokenises examples in order; one of them may become several rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a task turns checked examples into rows.

    version: that of the task's templates; part of the key. columns: names of a row's values -> whether each is a list.
    judging: columns of lists that only the rows of validation and test have. reals: columns of real numbers. scale: of
    the numbers that are predicted. joins: rows to train on are joined into blocks of up to `max_length` tokens.
    """

    encode: Encode
    version: int
    columns: Mapping[str, bool]
    labels: tuple[str, ...] = ()
    baseline: Mapping[str, float]
    judging: tuple[str, ...] = ()
    reals: tuple[str, ...] = ()
    scale: Scale | None = None
    joins: bool = False

    def columns_of(self, split: Split) -> Mapping[str, bool]:
        """Those of the rows of a split."""
        if split != "train":
            return {**self.columns, **dict.fromkeys(self.judging, True)}
        return {**self.columns, POSITIONS: True} if self.joins else self.columns


def prepare(
    examples: Examples,
    settings: TaskSettings,
    recipe: Recipe,
    *,
    tokenizer: Any,
    cache: Path,
    notes: Sequence[str] = (),
) -> Prepared:
    """The prepared rows of these examples, from `cache` or built there; see the module on concurrency.

    notes: what there is to say of them already; what is found while they are built follows. Raises DataError if rows
    cannot be used and are refused, or if max_length leaves nothing of a whole split, ResourceError if the cache cannot
    be written.
    """
    key = prepared_key(examples, settings, recipe, tokenizer)
    target = cache.absolute() / "data" / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with durable.locked(target):
            found = load_prepared(target) or _build(examples, settings, recipe, target)
            return replace(found, notes=(*notes, *_mixed(found, settings, recipe), *found.notes))
    except OSError as error:
        raise ResourceError(f"data cache {target.parent} cannot be used: {error.strerror or error}") from error


def _mixed(prepared: Prepared, settings: TaskSettings, recipe: Recipe) -> list[str]:
    """What there is to say of the parts of a mixture."""
    if not prepared.shares:
        return []
    rows = "blocks of training rows" if recipe.joins else "training rows"
    return mixture_notes(prepared.shares, map(source_name, settings.data.places), rows=rows)


def prepared_key(examples: Examples, settings: TaskSettings, recipe: Recipe, tokenizer: Any) -> str:
    """sha256 over all that the rows depend on; also their fingerprint."""
    parts = {
        "format": FORMAT,
        "task": settings.type,
        "version": recipe.version,
        "contents": contents_hash(examples),
        "seed": settings.seed,
        "shares": [settings.test_share, settings.validation_share],
        "max_length": settings.max_length,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    if settings.max_target_length:
        parts |= {"max_target_length": settings.max_target_length}
    if settings.rules > 1:
        parts |= {"rules": settings.rules, "bad_rows": settings.bad_rows, "thinking": settings.thinking}
    if settings.long_texts:
        parts |= {"long_texts": settings.long_texts}
    if settings.short_texts:
        parts |= {"short_texts": settings.short_texts}
    if settings.data.parts:
        rows = Counter(example.part for example in examples["train"])
        parts |= {"mixture": [[part.weight, rows[number]] for number, part in enumerate(settings.data.parts)]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over what decides a tokenizer's output; its passing truncation and padding state does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)
        rules.pop("padding", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [rules, special, tokenizer.chat_template, tokenizer.truncation_side, tokenizer.model_input_names]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_prepared(folder: Path) -> Prepared | None:
    """What `prepared.json` in `folder` says, or None if there is none that can be read."""
    try:
        values = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return prepared_from_json(values, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepared_to_json(prepared: Prepared) -> dict[str, Any]:
    """All of it but the path: the folder may be moved."""
    return {
        "fingerprint": prepared.fingerprint,
        "rows": dict(prepared.rows),
        "labels": list(prepared.labels),
        "longest": prepared.longest,
        "baseline": dict(prepared.baseline),
        "notes": list(prepared.notes),
        **({} if prepared.scale is None else {"scale": scale_to_json(prepared.scale)}),
        **({"shares": [list(share) for share in prepared.shares]} if prepared.shares else {}),
    }


def prepared_from_json(values: Mapping[str, Any], folder: Path) -> Prepared:
    """The inverse of `prepared_to_json`; raises KeyError if a value is missing."""
    return Prepared(
        path=folder,
        fingerprint=values["fingerprint"],
        rows=dict(values["rows"]),
        labels=tuple(values["labels"]),
        longest=values["longest"],
        baseline=dict(values["baseline"]),
        notes=tuple(values.get("notes", ())),
        scale=scale_from_json(values.get("scale")),
        shares=tuple(Share(*share) for share in values.get("shares", ())),
    )


def load_rows(prepared: Prepared, split: Split) -> Sequence[Row]:
    """The rows of one split, those of a mixture's training in the shares of its parts.

    Raises DataError if they are withheld, missing, or not as many as were prepared.
    """
    expected = prepared.rows.get(split)
    if expected is None:
        raise DataError(f"{prepared.path}: the {split} rows are kept from a search; only a verification reads them")
    if not expected:
        return ()
    folder = prepared.path / split
    try:
        rows = MappedRows(datasets.load_from_disk(str(folder)).data.table)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{folder}: prepared rows cannot be read: {reason}; delete {prepared.path}") from error
    if len(rows) != expected:
        raise DataError(f"{folder}: {len(rows)} rows where {expected} were prepared; delete {prepared.path}")
    if split == "train" and prepared.shares:
        return MixedRows(rows, prepared.shares, prepared.fingerprint)
    return rows


def _build(examples: Examples, settings: TaskSettings, recipe: Recipe, target: Path) -> Prepared:
    """Build beside `target` and rename; the caller holds the lock."""
    for left_over in target.parent.glob(f".{target.name}.*"):  # of builders that were killed
        shutil.rmtree(left_over, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        prepared = _write_rows(examples, settings, recipe, folder=folder, key=target.name)
        text = json.dumps(prepared_to_json(prepared), indent=2) + "\n"
        (folder / _MANIFEST).write_text(text, encoding="utf-8")
        _sync(folder)
        if target.exists():  # without a readable manifest, or it would have been used
            shutil.rmtree(target)
        folder.rename(target)
        durable.sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info("prepared %s rows in %s", "/".join(str(prepared.rows[split]) for split in SPLITS), target)
    return replace(prepared, path=target)


def _write_rows(examples: Examples, settings: TaskSettings, recipe: Recipe, *, folder: Path, key: str) -> Prepared:
    counts: dict[str, int] = {}
    shares: tuple[Share, ...] = ()
    longest = 0
    told = _Told(settings)
    with quiet_datasets(), single_threaded_tokenizers():
        for split in SPLITS:
            features = _features(recipe.columns_of(split), recipe.reals)
            parts = [list(_tables(part, recipe.encode, features, told, settings)) for part in _by_part(examples[split])]
            tables = list(chain.from_iterable(parts))
            counts[split] = sum(len(table) for table, _ in tables)
            longest = max(longest, *(length for _, length in tables)) if tables else longest
            told.end(split, examples[split])
            if split == "train":
                shares = _shares(settings, [sum(len(table) for table, _ in part) for part in parts])
            if counts[split]:
                whole = datasets.concatenate_datasets([table for table, _ in tables])
                whole.save_to_disk(str(folder / split), num_shards=1)
    return Prepared(
        path=folder,
        fingerprint=key,
        rows=counts,
        labels=recipe.labels,
        longest=longest,
        baseline=recipe.baseline,
        notes=tuple(told.lines()),
        scale=recipe.scale,
        shares=shares,
    )


def _by_part(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """The examples of each part of a mixture, in the order of the parts."""
    found: dict[int, list[Example]] = {}
    for example in examples:
        found.setdefault(example.part, []).append(example)
    return [found[part] for part in sorted(found)]


def _shares(settings: TaskSettings, rows: Sequence[int]) -> tuple[Share, ...]:
    """Shares of the parts of a mixture, from their tokenised rows. Raises DataError if a part has none."""
    if not settings.data.parts:
        return ()
    check_parts(settings, [part for part, count in enumerate(rows) if count])
    return tuple(Share(part.weight, count) for part, count in zip(settings.data.parts, rows, strict=True))


def _tables(
    examples: Sequence[Example], encode: Encode, features: datasets.Features, told: _Told, settings: TaskSettings
) -> Iterator[tuple[Any, int]]:
    """Tables of up to 1,000 rows with the tokens of their longest text, as it is cut.

    Nothing but the current one is held as Python objects.
    """
    for start in range(0, len(examples), _CHUNK):
        encoded = encode(examples[start : start + _CHUNK])
        told.add(encoded)
        rows = [each.row for each in encoded if each.row is not None]
        kept = (each for each in encoded if each.row is not None)
        limits = settings.max_length, settings.max_target_length
        longest = max((max(min(each.tokens, limits[0]), min(each.target, limits[1])) for each in kept), default=0)
        if POSITIONS in features:
            rows = join_rows(rows, settings.max_length)
            longest = max((len(row["input_ids"]) for row in rows), default=0)
            told.add_blocks(rows)
        values = {name: [row[name] for row in rows] for name in features}
        yield datasets.Dataset.from_dict(values, features=features), longest


def _features(columns: Mapping[str, bool], reals: Sequence[str]) -> datasets.Features:
    """Types of the columns of a table: numbers and lists of them, whole in 32 bits, real in 64."""
    numbers = {name: datasets.Value("float64" if name in reals else "int32") for name in columns}
    return datasets.Features(
        {name: datasets.List(numbers[name]) if is_list else numbers[name] for name, is_list in columns.items()}
    )


class _Told:
    """What there is to say of the rows of all splits once they are tokenised."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._tokens: array[int] = array("i")
        self._targets: array[int] = array("i")
        self._unfinished = 0
        self._kept = 0
        self._blocks: list[int] = []
        self._bad = self._fresh()
        self._lines: list[str] = []

    def _fresh(self) -> BadRows:
        return BadRows(skip=self._settings.bad_rows == "skip")

    def add(self, encoded: Sequence[Encoded]) -> None:
        """Count these rows."""
        for each in encoded:
            if each.error is not None:
                self._bad.add(each.error)
            else:
                self._tokens.append(each.tokens)
                self._targets.append(each.target)
                self._unfinished += each.is_unfinished
                self._kept += each.row is not None

    def add_blocks(self, blocks: Sequence[Row]) -> None:
        """Count the tokens of blocks of joined rows."""
        self._blocks += [len(block["input_ids"]) for block in blocks]

    def end(self, split: Split, examples: Sequence[Example]) -> None:
        """The split is over. Raises DataError if rows cannot be used and are refused, or if none is left."""
        kept, self._kept = self._kept, 0
        good = len(examples) - self._bad.count
        if said := self._bad.close(good):
            self._lines.append(f"{split}: {said}")
        self._bad = self._fresh()
        limit = self._settings.max_length
        if good and not kept:
            message = f"max_length {limit} cuts off the response of every {split} row; a larger max_length is needed"
            what = f"{SHARE:.0%} of the rows have at most {share_length(self._tokens)} tokens"
            beside = ", columns such as system and history included (task.data.ignore leaves them out)"
            raise DataError(f"{examples[0].file}: {message}; {what}{beside * (self._settings.type == 'instruction')}")
        if kept < good:
            what = f"cuts off the whole response of {good - kept} of {good} {split} rows; they are left out"
            self._lines.append(f"max_length {limit} {what}")
        if self._blocks:
            full = sum(self._blocks) / (len(self._blocks) * limit)
            what = (
                f"{kept:,} rows are joined into {len(self._blocks):,} blocks of up to {limit} tokens, {full:.0%} full"
            )
            self._lines.append(f"{split}: {what}")
            self._blocks = []

    def lines(self) -> list[str]:
        """All of it, the cut rows last."""
        settings = self._settings
        lines = [*self._lines, *self._cut("max_length", settings.max_length, self._tokens)]
        if settings.max_target_length:
            lines += self._cut("max_target_length", settings.max_target_length, self._targets)
        return lines

    def _cut(self, name: str, limit: int, tokens: Sequence[int]) -> Iterator[str]:
        """How many rows this limit cuts, if it cuts any."""
        cut = sum(count > limit for count in tokens)
        if not cut:
            return
        line = f"{name} {limit} cuts {cut:,} of {len(tokens):,} rows"
        if self._unfinished and tokens is self._learnt:
            line += f"; {self._unfinished:,} lose the end of what is learnt, and with it the token that ends a text"
        yield f"{line}; {SHARE:.0%} of the rows have at most {share_length(tokens)} tokens"

    @property
    def _learnt(self) -> Sequence[int]:
        """Tokens of the texts that are learnt: of targets, where they are apart."""
        return self._targets if self._settings.max_target_length else self._tokens


def lengths(encoded: Sequence[Encoded]) -> list[int]:
    """Tokens of these rows before any cut, without those that cannot be used; raises DataError if none can."""
    errors = [each.error for each in encoded if each.error is not None]
    if len(errors) == len(encoded) and errors:
        raise errors[0]
    return [each.tokens for each in encoded if each.error is None]


SHARE = 0.95
"""Share of the rows that a good max_length leaves whole."""


def share_length(tokens: Sequence[int]) -> int:
    """The number of tokens that this share of the rows does not exceed."""
    return sorted(tokens)[max(0, math.ceil(SHARE * len(tokens)) - 1)]


def _sync(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            durable.sync(Path(parent) / name)
        durable.sync(Path(parent))
