"""Charts about modules (importance and suggested ranks by layer) and about the verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from automl.report.chart_style import (
    BLACK,
    GREEN,
    GREY,
    SCALE,
    VERMILLION,
    escaped,
    new_figure,
)
from automl.report.frames import StudyFrame, VerificationFrame, place_of
from automl.report.wording import confidence, signed


def module_shares(frame: StudyFrame) -> go.Figure | None:
    """Heat map of the importance of each module: kinds by layer."""
    shares = {each.module: 100 * each.share for each in frame.module_importance}
    notes = {
        each.module: f"{each.share:.1%} of the importance, {each.low:.1%} to {each.high:.1%} over {each.trials} trials"
        for each in frame.module_importance
    }
    return _layers(frame, shares, notes, "share, %", digits=1)


def module_energy(frame: StudyFrame) -> go.Figure | None:
    """Heat map of the strength of each module's kept directions."""
    if frame.suggestion is None:
        return None
    shares = {module: 100 * share for module, share in frame.suggestion.energies.items()}
    notes = {module: f"{share:.1f} % of the kept strength" for module, share in shares.items()}
    return _layers(frame, shares, notes, "strength, %", digits=1)


def suggested_ranks(frame: StudyFrame) -> go.Figure | None:
    """Heat map of the ranks of the cut adapter; none where ranks do not matter."""
    if frame.suggestion is None or frame.is_rank_free:
        return None
    ranks = {module: float(rank) for module, rank in frame.suggestion.ranks.items()}
    return _layers(frame, ranks, {module: f"rank {rank:g}" for module, rank in ranks.items()}, "rank", digits=0)


def _layers(
    frame: StudyFrame, values: Mapping[str, float], notes: Mapping[str, str], unit: str, *, digits: int
) -> go.Figure | None:
    if not values:
        return None
    places = {module: place_of(module) for module in values}
    kinds = sorted({kind for _, kind in places.values()}, reverse=True)
    layers = sorted({-1 if layer is None else layer for layer, _ in places.values()})
    cells = [[None] * len(layers) for _ in kinds]
    texts = [[""] * len(layers) for _ in kinds]
    hover = [[""] * len(layers) for _ in kinds]
    grid: list[list[float | None]] = [list(row) for row in cells]
    for module, (layer, kind) in places.items():
        row, column = kinds.index(kind), layers.index(-1 if layer is None else layer)
        grid[row][column] = values[module]
        texts[row][column] = f"{values[module]:.{digits}f}"
        hover[row][column] = f"{escaped(module)}<br>{notes[module]}"
    figure = new_figure(height=130 + 34 * len(kinds))
    figure.add_trace(
        go.Heatmap(
            z=grid,
            x=["–" if layer < 0 else str(layer) for layer in layers],
            y=[escaped(shortened(kind, kinds)) for kind in kinds],
            text=texts if len(layers) <= 16 else None,
            texttemplate="%{text}" if len(layers) <= 16 else None,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=SCALE,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": unit, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def shortened(kind: str, kinds: Sequence[str]) -> str:
    """The last two parts of a kind of module, or more where another kind ends alike: rows need names of their own."""
    parts = kind.split(".")
    ends = [".".join(parts[-count:]) for count in range(2, len(parts) + 1)]
    others = [f".{other}" for other in kinds if other != kind]
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), kind)


def verified(frame: StudyFrame) -> go.Figure | None:
    """Differences of the verification with their intervals."""
    verification = frame.verification
    if verification is None or not verification.comparisons:
        return None
    rows = list(verification.comparisons)[::-1]
    colours = {"better": GREEN, "worse": VERMILLION}
    shapes = {"better": "triangle-up", "worse": "triangle-down"}
    figure = new_figure(height=100 + 48 * len(rows), xaxis_title=f"difference in {escaped(verification.metric)}")
    error = {
        "type": "data",
        "symmetric": False,
        "array": [each.high - each.difference for each in rows],
        "arrayminus": [each.difference - each.low for each in rows],
        "thickness": 2,
        "color": "#333333",
    }
    figure.add_trace(
        go.Scatter(
            x=[each.difference for each in rows],
            y=[_against(verification, each.arm, each.against) for each in rows],
            error_x=error,
            mode="markers",
            showlegend=False,
            marker={
                "size": 13,
                "color": [colours.get(each.verdict, GREY) for each in rows],
                "symbol": [shapes.get(each.verdict, "circle") for each in rows],
            },
            text=[f"{each.verdict}: {signed(each.difference)}" for each in rows],
            hovertemplate="%{text} %{customdata}<extra></extra>",
            customdata=[f"[{signed(each.low)}, {signed(each.high)}] at {confidence(each.level)}" for each in rows],
        )
    )
    figure.add_vline(x=0, line={"color": BLACK, "width": 1, "dash": "dot"})
    return figure


def _against(verification: VerificationFrame, arm: str, against: str) -> str:
    return f"{escaped(verification.called(arm))}<br>against {escaped(verification.called(against))}"
