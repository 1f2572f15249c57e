"""What held-out rows say of each module's update, measured alike by every trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from automl.errors import is_out_of_memory
from automl.importance.heldout import in_batches, with_held_out
from automl.lanes import trial_name
from automl.tasks.base import Row
from automl.trial import Measurement

logger = logging.getLogger(__name__)


def measured_on(
    rows: Sequence[Row],
    measurement: Measurement,
    modules: Sequence[str],
    effects: Callable[[Sequence[Row]], Sequence[float]],
) -> Measurement:
    """The measurement with what the removal of each module's update would do to the loss on these rows.

    modules: paths of the adapted modules. effects: for one batch of rows, a number for each of them
    (`importance.heldout.removal_effects`). Unchanged if importances are not collected, if there are no rows, or if
    memory is too short.
    """
    if not (measurement.importances and rows):
        return measurement
    try:
        found = [effects(batch) for batch in in_batches(rows)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("%s: no memory to look at held-out rows: %s", trial_name(measurement.trial), error)
        return measurement
    return replace(measurement, importances=with_held_out(measurement.importances, modules, found))
