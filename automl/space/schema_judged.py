"""Tasks that say something else of a text than its class: their sections, and what their losses can be told."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints

from automl.head import Kind
from automl.methods.settings import Setting
from automl.space.schema_task import TaskSection

REGRESSION_LOSS = Setting(
    name="regression_loss",
    default="mse",
    meaning="error that is minimised: squared (mse), absolute (mae), or huber, squared up to one deviation",
    choices=("mse", "mae", "huber"),
    tried=("mse", "mae", "huber"),
)


class MultiLabelTask(TaskSection):
    """Any number of labels per text, or per pair of texts."""

    type: Literal["multi_label"]
    separator: Annotated[str, StringConstraints(min_length=1, max_length=5)] = "|"
    """What stands between labels that are written as text, as in CSV."""

    implementation: ClassVar[str] = "automl.tasks.multi_label:MultiLabel"
    head: ClassVar[Kind | Literal[""]] = "multi-label"
    default_metric: ClassVar[str] = "micro_f1"


class TokenClassificationTask(TaskSection):
    """A tag per word, as of entities or of parts of speech."""

    type: Literal["token_classification"]

    implementation: ClassVar[str] = "automl.tasks.token_classification:TokenClassification"
    head: ClassVar[Kind | Literal[""]] = "token-classification"
    default_metric: ClassVar[str] = "entity_f1"


class RegressionTask(TaskSection):
    """A number per text, or per pair of texts."""

    type: Literal["regression"]

    implementation: ClassVar[str] = "automl.tasks.regression:Regression"
    head: ClassVar[Kind | Literal[""]] = "regression"
    default_metric: ClassVar[str] = "mse"
    settings: ClassVar[tuple[Setting, ...]] = (REGRESSION_LOSS,)
