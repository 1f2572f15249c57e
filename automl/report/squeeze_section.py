"""What a report says of smaller sizes of the winner's adapter, and of its cut ranks as ranks to train with."""

from __future__ import annotations

from collections.abc import Iterator

from automl.report.blocks import Block, Chart, Notice, Table, Text
from automl.report.findings import Findings, comparison_text
from automl.report.frames import StudyFrame
from automl.report.wording import command, number, score, sentence
from automl.results.squeezed import squeeze_headline
from automl.storage.squeezes import CutRow, SqueezeRow

_KINDS = {"whole": "whole", "global": "global", "asked": "global, asked for", "even": "even"}


def sizes(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    """The curve, what it means, and where the kept strength lies."""
    squeeze = frame.squeeze
    if squeeze is None:
        if frame.best is not None and frame.suggestion is not None:
            yield Text(f"Nobody has looked. `{command('squeeze', frame.study)}` does, in seconds.")
        return
    has_knee = squeeze.knee < squeeze.whole.parameters
    yield Notice(sentence(squeeze_headline(squeeze)), "good" if has_knee else "caution")
    yield Text(_meaning(frame.study, squeeze))
    yield Chart(
        "squeeze",
        f"Trial {squeeze.trial}'s adapter cut to fewer parameters, without training, on {squeeze.rows:,} validation"
        " rows; beside it trials that were trained with fewer, on theirs.",
    )
    yield Table(
        (">parameters", ">even rank", "cut", f">{squeeze.metric}", ">after recovery", ""),
        tuple(_row(squeeze, cut) for cut in squeeze.cuts),
        "`even rank`: the rank in every module that costs as much."
        " Global cuts keep the strongest directions of all modules, even ones as many in each.",
    )
    if frame.suggestion is not None and frame.suggestion.energies:
        yield Chart("module-energy", "Part of the kept strength that lies in each module: where the adapter works.")


def _meaning(study: str, squeeze: SqueezeRow) -> str:
    if squeeze.knee < squeeze.whole.parameters:
        first = (
            f"Where size matters, the adapter of {squeeze.knee:,} parameters can take the place of the whole, at no"
            f" visible cost on these rows (`{command('squeeze', study, '-o', 'FOLDER')}` writes it)."
        )
    else:
        first = "Every smaller size loses more than the margin on these rows, so the adapter is best kept whole."
    return (
        f"{first} It says nothing of training at a small rank with a learning rate of its own, which is often better"
        " still."
    )


def _row(squeeze: SqueezeRow, cut: CutRow) -> tuple[str, ...]:
    is_knee = cut.parameters == squeeze.knee and cut.kind != "even"
    return (
        f"{cut.parameters:,}",
        number(cut.even_rank, 3),
        _KINDS[cut.kind],
        score(cut.value),
        score(cut.recovered[squeeze.metric]) if cut.recovered else "–",
        "knee" if is_knee else "",
    )


def hypothesis(frame: StudyFrame) -> Iterator[Block]:
    """The cut ranks as ranks to train with: a hypothesis, and what a verification has said of it."""
    suggestion = frame.suggestion
    if suggestion is None or frame.is_rank_free:
        return
    if suggestion.ranks:
        label = "" if suggestion.status in _STATUS else "UNVERIFIED as ranks to train with. "
        yield _STATUS.get(suggestion.status, _UNVERIFIED)
        size = "" if suggestion.used_params is None else f"; they take {suggestion.used_params:,} parameters"
        yield Chart("suggested-ranks", f"{label}Rank of each module in the cut adapter{size}.")
        yield from _verdicts(frame)
    if suggestion.note:
        yield Text(suggestion.note)
    if suggestion.ranks:
        yield Text(f"As a rank_pattern for PEFT, Axolotl or Ludwig: `{command('suggest', frame.study)}`.")


def _verdicts(frame: StudyFrame) -> Iterator[Block]:
    verification = frame.verification
    if verification is not None:
        for each in verification.comparisons:
            arm = verification.arm(each.arm)
            if arm is not None and arm.kind == "suggested":
                yield Text(f"{comparison_text(each, verification).capitalize()}.")


_UNVERIFIED = Notice(
    "UNVERIFIED: to train with, the ranks below are a hypothesis. Even ranks may do as well.", "caution"
)
_STATUS = {
    "passed": Notice("Verified: better than even and than random ranks of the same size.", "good"),
    "no_gain": Notice("Verified: no measurable gain over even ranks of the same size. Even ranks will do.", "caution"),
    "worse": Notice("Verified: worse than even ranks of the same size. Do not use these ranks.", "problem"),
}
