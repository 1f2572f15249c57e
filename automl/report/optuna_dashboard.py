"""What Optuna's dashboard shows beside its own charts: key figures, a note, charts of ours. Written by the driver."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import BaseStorage


def show_in_dashboard(
    storage: BaseStorage, study_name: str, *, figures: Mapping[str, Any], note: str, attributes: Mapping[str, str]
) -> None:
    """Set user attributes (always), the study's note and Plotly figures by id (where optuna-dashboard is installed).

    Only what has changed is written, so a replay leaves the study as it is. A note that a person has edited is left
    alone: it no longer begins as ours do.
    """
    study = optuna.load_study(study_name=study_name, storage=storage)
    told = study.user_attrs
    for key, value in attributes.items():
        if told.get(key) != value:
            study.set_user_attr(key, value)
    if importlib.util.find_spec("optuna_dashboard") is None:
        return
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    before = get_note(study)
    if before != note and (not before or before.splitlines()[0] == note.splitlines()[0]):
        save_note(study, note)
    for name, figure in figures.items():
        save_plotly_graph_object(study, figure, graph_object_id=name)
