"""Packed training: many LoRA trials at once on one frozen backbone, each with the curve it would have alone.

    workload = Workload(task=task, train_rows=rows, evaluation_rows=held_out, tokenizer=tokenizer)
    for event in PackedTrainer(backbone, workload).train(specs, slots=8): ...

Needs torch and a model of transformers; neither Ray nor Optuna nor SQL. See docs/adr/0007-packed-training.md.
"""

from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload

__all__ = ["PackedTrainer", "Workload"]
