"""From a study in the database to its report: read, drawn, written beside the summary, and shown in the dashboard."""

from __future__ import annotations

import logging
from pathlib import Path

from automl import durable
from automl.report.findings import Findings
from automl.report.frames import RankSuggestion, StudyFrame
from automl.report.reading import read_frame
from automl.report.render import FORMATS, Report, render
from automl.space.spec import SweepSpec
from automl.storage.connect import Guard
from automl.storage.sql import Database
from automl.study.dashboard import show_in_dashboard
from automl.sweep.record import recorded_space

logger = logging.getLogger(__name__)

REPORT = "report"
"""Name of the files, before the ending."""
_IN_DASHBOARD = ("verified", "module-importance", "suggested-ranks")


def study_frame(database: Database, spec: SweepSpec, suggestion: RankSuggestion | None = None) -> StudyFrame:
    """Everything about a study, read now."""
    space = recorded_space(database.store(spec.study), spec)
    return read_frame(database, spec, space, suggestion=suggestion)


def write_report(
    database: Database,
    spec: SweepSpec,
    folder: Path,
    *,
    suggestion: RankSuggestion | None = None,
    guard: Guard | None = None,
) -> Findings:
    """Write report.html, report.json and report.md into the study's folder, each atomically; called by the driver.

    guard: the lease's; with it the key figures are also put where Optuna's dashboard shows them.
    """
    frame = study_frame(database, spec, suggestion)
    report = render(frame)
    for name, ending in FORMATS.items():
        durable.replace_file(folder / f"{REPORT}{ending}", report.texts[name].encode())
    if guard is not None:
        _show(database, frame, report, guard)
    return report.findings


def _show(database: Database, frame: StudyFrame, report: Report, guard: Guard) -> None:
    from automl.report.figures import FIGURES

    drawn = {f"automl-{name}": FIGURES[name](frame) for name in _IN_DASHBOARD}
    found = report.findings
    best = frame.best
    attributes = {
        "evidence": found.evidence.value,
        "best_trial": str(best.number) if best else "none",
        f"best_{frame.metric}": f"{best.value:.4f}" if best and best.value is not None else "none",
        "verified": frame.verification.headline if frame.verification and frame.verification.done else "no",
    }
    note = f"## Findings of the search\n\n**Evidence: {found.evidence.value}**\n\n" + "\n\n".join(found.sentences)
    show_in_dashboard(
        database.optuna_storage(guard=guard),
        frame.study,
        figures={name: figure for name, figure in drawn.items() if figure is not None},
        note=note,
        attributes=attributes,
    )
