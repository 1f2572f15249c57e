"""What a report says of methods of fine-tuning that were held against each other."""

from __future__ import annotations

from collections.abc import Iterator

from automl.report.blocks import Block, Chart, Table, Text
from automl.report.findings import Findings
from automl.report.frames import MethodRow, StudyFrame
from automl.report.wording import confidence, duration, number, score, signed
from automl.results.summary import memory_text


def methods(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    """The answer, the figure and the table; nothing where the search had one method."""
    verification = frame.verification
    if verification is None or not verification.methods:
        return
    yield Text(verification.methods_text)
    yield Chart(
        "methods",
        f"Mean {verification.metric} on test rows over trainable parameters and over the memory of a step, a mark for"
        " each method; bars: one standard deviation over seeds.",
    )
    yield Table(
        (
            "method",
            f">{verification.metric}",
            ">s.d.",
            f">against {verification.reference}",
            ">interval",
            "verdict",
            ">trainable",
            ">peak memory",
            ">seconds",
            ">learning rate",
        ),
        tuple(map(_row, verification.methods)),
        "Each method's best trial of the search, at the best of three learning rates around its own (by validation"
        " rows, on a seed that is not scored), trained on the same fresh seeds. `seconds`: training time of one."
        f"{_levels(verification.methods)}",
    )


def _row(row: MethodRow) -> tuple[str, ...]:
    return (
        row.method,
        score(row.mean),
        score(row.sd),
        "–" if row.difference is None else signed(row.difference),
        "–" if row.low is None else f"{signed(row.low)} to {signed(row.high)}",
        row.verdict or "–",
        number(row.trainable_params),
        memory_text(row.peak_bytes),
        "–" if row.seconds is None else duration(row.seconds),
        number(row.learning_rate, 3),
    )


def _levels(rows: tuple[MethodRow, ...]) -> str:
    levels = sorted({row.level for row in rows if row.level is not None})
    return f" Intervals at {' and '.join(map(confidence, levels))} hold jointly." if levels else ""
