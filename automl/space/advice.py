"""What is legal in `search:` but rarely meant: sampler, pruner, budget and space judged together, each in one line."""

from __future__ import annotations

from collections.abc import Iterator

from automl.space.entries import PRUNERS
from automl.space.points import count_configurations, grid_values, values
from automl.space.spec import SearchSettings, SearchSpace


def search_advice(space: SearchSpace, search: SearchSettings) -> list[str]:
    """One line for each thing to know before the search begins; may be empty. space: without automatic ranges."""
    return [*_of_the_space(space, search), *_of_the_pruner(search)]


def _of_the_space(space: SearchSpace, search: SearchSettings) -> Iterator[str]:
    if not space.parameters:
        yield f"space: nothing is searched; all {search.trials} trials train one configuration from other random starts"
        return
    is_grid = search.sampler == "grid"
    count = count_configurations(space, grid_values if is_grid else values)
    if count is not None and count < search.trials:
        yield f"space: it has {count:,} configurations, fewer than trials {search.trials:,}; the search ends with them"
    if is_grid and count is not None and count > search.trials:
        yield f"sampler: grid tries {search.trials:,} of {count:,} configurations, a random part; raise trials for all"
    if is_grid and search.pruner != "none":
        yield f"pruner: {search.pruner} trains few points of the grid to the last step; none trains every one"


def _of_the_pruner(search: SearchSettings) -> Iterator[str]:
    first = _first_decision(search)
    if first is not None and search.knows_steps and first >= search.steps:
        yield f"pruner: {search.pruner} does not act before step {first:,}, and a trial has {search.steps:,}"


def _first_decision(search: SearchSettings) -> int | None:
    """The step at which the pruner may act for the first time; None if that does not depend on steps alone."""
    pruner = PRUNERS[search.pruner]
    return pruner.first_step(search, pruner.in_use(search))
