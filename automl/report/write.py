"""From a study in the database to its report: read, drawn, written beside the summary, and shown in the dashboard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from automl import durable
from automl.errors import InterruptedSearch, ResourceError, SearchError, StorageError
from automl.report.findings import Findings
from automl.report.frames import ModuleShare, RankSuggestion, StudyFrame, place_of
from automl.report.optuna_dashboard import show_in_dashboard
from automl.report.reading import read_frame
from automl.report.render import FORMATS, Report, render
from automl.report.wording import sentence
from automl.results.folders import study_folder
from automl.results.recorded import recorded_space
from automl.results.squeezed import squeeze_headline
from automl.results.suggestion import Suggestion, suggestion_of
from automl.space.spec import SweepSpec
from automl.storage.connect import Guard
from automl.storage.sql import Database

logger = logging.getLogger(__name__)

REPORT = "report"
"""Name of the files, before the ending."""
_IN_DASHBOARD = ("verified", "squeeze", "module-energy", "suggested-ranks", "module-importance")


def study_frame(database: Database, spec: SweepSpec) -> StudyFrame:
    """Everything about a study, read now; with the ranks of the winner's cut adapter if it was squeezed."""
    space = recorded_space(database.store(spec.study), spec)
    frame = read_frame(database, spec, space)
    if frame.best is None or not (frame.module_importance or frame.squeeze):
        return frame
    try:
        found = suggestion_of(database, spec.study)
    except SearchError as reason:
        return replace(frame, suggestion=RankSuggestion(ranks={}, note=f"No ranks are suggested: {reason}."))
    return replace(
        frame,
        suggestion=_suggestion(found),
        module_importance=tuple(_shares(found)) or frame.module_importance,
    )


def _suggestion(found: Suggestion) -> RankSuggestion:
    agreement = (
        ""
        if found.stability is None
        else f"The importances of {found.n_eff:.1f} effective trials rank the modules with a correlation of"
        f" {found.stability:.2f} (at least {found.least_stability:.2f})."
    )
    return RankSuggestion(
        ranks=found.ranks,
        energies={module.module: module.energy for module in found.modules},
        uniform_rank=found.uniform_rank,
        used_params=found.used_params,
        status=found.status,
        note=" ".join([agreement, *map(sentence, (*found.notes, *found.advice))]).strip(),
    )


def _shares(found: Suggestion) -> Iterator[ModuleShare]:
    for module in found.modules:
        if module.share is None or module.low is None or module.high is None:
            continue
        layer, kind = place_of(module.module)
        yield ModuleShare(
            module=module.module,
            layer=layer,
            kind=kind,
            share=module.share,
            low=module.low,
            high=module.high,
            held_out=module.held_out,
            effective_rank=module.effective_rank or 0.0,
            trials=len(found.weights),
        )


def renew_report(database: Database, spec: SweepSpec, *, guard: Guard) -> None:
    """Write the report anew after a search or a verification, which does not fail over a page that can be made again.

    guard: the lease's. Made again while the database is away. Raises StorageError or ResourceError (the lease was lost,
    the database is away for too long), InterruptedSearch (stopped meanwhile); all else is a line in the log.
    """
    try:
        database.retry.call(lambda: write_report(database, spec, study_folder(spec), guard=guard))
    except (StorageError, ResourceError, InterruptedSearch):
        raise
    except Exception as error:  # noqa: BLE001 - whatever the page could not bear, the results are in SQL
        again = f"automl report {spec.study}"
        logger.warning("no report was written: %s: %s; try: %s", type(error).__name__, error, again)


def write_report(
    database: Database,
    spec: SweepSpec,
    folder: Path,
    *,
    guard: Guard | None = None,
) -> Findings:
    """Write report.html, report.json and report.md into the study's folder, each atomically; called by the driver.

    guard: the lease's; with it the key figures are also put where Optuna's dashboard shows them.
    """
    frame = study_frame(database, spec)
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
        "smaller_adapter": squeeze_headline(frame.squeeze) if frame.squeeze else "not looked for",
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
