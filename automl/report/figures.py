"""The charts by name, each a function from the frame to a Plotly figure. A new chart is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import plotly.graph_objects as go

from automl.report.forgetting_chart import quality_by_forgetting
from automl.report.frames import StudyFrame
from automl.report.methods_chart import metric_by_cost
from automl.report.module_charts import module_energy, module_shares, suggested_ranks, verified
from automl.report.space_charts import parallel, parameter_shares, rate_by_rank, slices, targets_by_size
from automl.report.squeeze_chart import squeeze_curve
from automl.report.trial_charts import curves, front, history, spent

FIGURES: Mapping[str, Callable[[StudyFrame], go.Figure | None]] = {
    "methods": metric_by_cost,
    "verified": verified,
    "history": history,
    "curves": curves,
    "parameter-importance": parameter_shares,
    "parallel": parallel,
    "slices": slices,
    "rate-by-rank": rate_by_rank,
    "targets-by-size": targets_by_size,
    "pareto": front,
    "forgetting": quality_by_forgetting,
    "squeeze": squeeze_curve,
    "module-energy": module_energy,
    "module-importance": module_shares,
    "suggested-ranks": suggested_ranks,
    "spent": spent,
}
"""Every chart by name; None where the study has nothing to draw."""
