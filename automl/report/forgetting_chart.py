"""The chart of quality against forgetting: what trials learnt, and what they lost of what the model could do."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from automl.report.answers import forgetting_front
from automl.report.chart_style import BLACK, GREY, SKY, VERMILLION, new_figure, points, with_value
from automl.report.frames import StudyFrame
from automl.storage.trials import TrialRow
from automl.trial import TrialState


def quality_by_forgetting(frame: StudyFrame) -> go.Figure | None:
    """Trials by forgetting and value, the front, the winner, and what a constraint allows."""
    known = [t for t in with_value(frame, TrialState.COMPLETE, TrialState.PRUNED) if t.forgetting is not None]
    if not known:
        return None
    front = forgetting_front(frame)
    out = [trial for trial in known if trial.state != TrialState.COMPLETE]
    others = [trial for trial in known if trial not in front and trial not in out]
    figure = new_figure(xaxis_title=f"forgetting: {frame.keep} on other text, worse by", yaxis_title=frame.metric)
    crossed = {"color": GREY, "symbol": "x-thin", "size": 9, "line": {"width": 1.5, "color": GREY}}
    figure.add_trace(_marks(frame, out, "forgot more than a constraint allows", crossed))
    figure.add_trace(_marks(frame, others, "complete", {"color": SKY}))
    line = _marks(frame, front, "none that forgot less is better", {"color": VERMILLION, "symbol": "diamond"})
    line.update(mode="lines+markers", line={"color": VERMILLION, "width": 2, "shape": "hv"})
    figure.add_trace(line)
    if frame.best is not None and frame.best.forgetting is not None:
        star = {"color": BLACK, "symbol": "star-open", "size": 17, "line": {"width": 1.5}}
        figure.add_trace(_marks(frame, [frame.best], "the winner", star))
    _add_line(figure, 0.0, "the untuned model", "dot")
    if frame.forgetting_limit is not None:
        _add_line(figure, frame.forgetting_limit, "the constraint", "dash")
    return figure


def _marks(frame: StudyFrame, trials: Sequence[TrialRow], name: str, marker: dict[str, object]) -> go.Scatter:
    return points(frame, trials, [trial.forgetting for trial in trials], name, marker)


def _add_line(figure: go.Figure, place: float, text: str, dash: str) -> None:
    figure.add_vline(
        x=place,
        line={"color": BLACK, "dash": dash, "width": 1},
        annotation={"text": text, "font": {"size": 11}, "textangle": -90, "xanchor": "right", "yanchor": "top"},
    )
