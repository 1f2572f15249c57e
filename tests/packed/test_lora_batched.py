"""All slots computed together: the curves of slots computed one by one, and of PEFT; padding that stays zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from automl.errors import CheckpointError, OutOfMemory
from automl.lora import Hyperparameters
from automl.packed.bank import Bank, BankSize, adamw_rows
from automl.packed.bank_step import BankStep, bank_tokens, static_width
from automl.packed.masks import bits, keep_limit, layer_mask, mask_seed
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import MicroBatch
from automl.trial import StopReason, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import PeftRun, spec, workload

TARGETS = ("qv", "mlp", "all-linear")
ROOM = BankSize(slots=5, rank=20, targets=TARGETS)
MODELS = [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]
TRIALS = [
    spec(0, rank=4, target="qv", batch_size=4, learning_rate=3e-3, weight_decay=0.5),
    spec(1, rank=16, dropout=0.1, batch_size=4, learning_rate=3e-3, use_rslora=True, clip=0.3),
    spec(2, rank=3, dropout=0.2, target="mlp", batch_size=2, learning_rate=3e-3),
    spec(3, rank=20, target="mlp", batch_size=4, learning_rate=3e-3, schedule="cosine", clip=0.0),
]


def trainer_of(name: str, kind: str, **options: Any) -> PackedTrainer:
    return PackedTrainer(tiny_model(name, kind=kind), workload(kind), kernel="torch-fp32", **options)


def trainer_after(name: str, kind: str, trials: list[TrialSpec], rounds: int, **options: Any) -> PackedTrainer:
    trainer = trainer_of(name, kind, **options)
    for trial in trials:
        trainer.admit(trial)
    advance(trainer, rounds)
    return trainer


def advance(trainer: PackedTrainer, rounds: int) -> None:
    for _ in range(rounds):
        assert trainer.round(list(trainer.members.values())) == []


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_slots_together_follow_slots_one_by_one(name: str, kind: str) -> None:
    together, apart = trainer_after(name, kind, TRIALS, 0, bank=ROOM), trainer_of(name, kind)
    for trial in TRIALS:
        apart.admit(trial, together.snapshot(trial.number))  # with the same counted masks
    for _ in range(20):
        advance(together, 1)
        advance(apart, 1)
        for number, member in together.members.items():
            # Batched products, one optimizer for all and wider padding add up in another order.
            assert member.loss == pytest.approx(apart.members[number].loss, rel=1e-6)
    for number, member in together.members.items():
        assert together.evaluate(member, 512) == pytest.approx(apart.evaluate(apart.members[number], 512), rel=2e-6)
        mine, theirs = together.snapshot(number), apart.snapshot(number)
        assert mine.moments.keys() == theirs.moments.keys()
        assert all(torch.allclose(mine.params[key], theirs.params[key], atol=3e-6) for key in theirs.params)


class CountedDropout(nn.Module):
    """Dropout for the oracle, with the masks of a trial at the step that `step` names."""

    def __init__(self, path: str, p: float, seed: int, step: list[int]) -> None:
        super().__init__()
        self._path, self._p, self._seed, self._step = path, p, seed, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        seeds, steps, first = (torch.tensor([value], dtype=torch.int32) for value in (self._seed, self._step[0], 0))
        drawn = bits(seeds, steps, first, tuple(x.shape))  # type: ignore[arg-type]
        limit = torch.tensor([keep_limit(self._p)], dtype=torch.int32)
        return x * layer_mask(drawn, self._path, limit)[0] / (1.0 - self._p)


def with_counted_masks(peft_model: nn.Module, trial: TrialSpec) -> None:
    step = [-1]
    peft_model.register_forward_pre_hook(lambda *_: step.__setitem__(0, step[0] + peft_model.training))
    for path, module in peft_model.named_modules():
        if "lora_dropout" in module._modules:
            name = path.removeprefix("base_model.model.")
            module.lora_dropout["default"] = CountedDropout(name, trial.hyper.dropout, mask_seed(trial.seed), step)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_slots_together_follow_peft(name: str, kind: str) -> None:
    model = tiny_model(name, kind=kind)
    trainer = PackedTrainer(model, workload(kind), bank=ROOM)
    for trial in TRIALS:
        trainer.admit(trial)
    losses: dict[int, list[float]] = {trial.number: [] for trial in TRIALS}
    for _ in range(20):
        advance(trainer, 1)
        for number, member in trainer.members.items():
            losses[number].append(member.loss)
    found = {trial.number: trainer.snapshot(trial.number).params for trial in TRIALS}
    trainer.close()
    for trial in TRIALS:
        oracle = PeftRun(model, workload(kind), trial, steps=20, prepared=with_counted_masks)
        assert losses[trial.number] == pytest.approx(oracle.losses, rel=1e-6), trial.number
        moved, apart = (
            torch.cat([(one[name] - oracle.parameters[name]).flatten() for name in one]).norm()
            for one in (oracle.before, found[trial.number])
        )
        assert apart <= 1e-5 * moved


def test_one_optimizer_for_all_rows_equals_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = Bank([], {"head": nn.Linear(30, 7)}, slots=3, rank=1, device=torch.device("cpu"))
    hypers = [
        Hyperparameters(weight_decay=0.3, clip=0.5),
        Hyperparameters(weight_decay=0.0, clip=0.0),
        Hyperparameters(weight_decay=0.01, clip=1e6),
    ]
    rows = [bank.take(1) for _ in hypers]
    alone = [nn.Parameter(torch.randn(row.layout.size, generator=generator)) for row in rows]
    for row, parameter in zip(rows, alone, strict=True):
        row.params.copy_(parameter.detach())
    optimizers = [
        torch.optim.AdamW([parameter], weight_decay=hyper.weight_decay)
        for parameter, hyper in zip(alone, hypers, strict=True)
    ]
    for step in range(1, 31):
        for place, (row, parameter, hyper) in enumerate(zip(rows, alone, hypers, strict=True)):
            if step % (place + 1):
                continue  # rows that are not due keep their gradient and everything else
            gradient = torch.randn(row.layout.size, generator=generator) * 10.0 ** (place - 1)
            row.gradient.copy_(gradient * 8)
            parameter.grad = gradient
            if hyper.clip > 0:
                nn.utils.clip_grad_norm_([parameter], hyper.clip)
            optimizers[place].param_groups[0]["lr"] = 1e-2 / step
            optimizers[place].step()
            bank.finish_step(
                row.row,
                hyper,
                count=8,
                learning_rate=1e-2 / step,
                number=int(optimizers[place].state[parameter]["step"]),
            )
        bank.update()
        for row, parameter in zip(rows, alone, strict=True):
            assert torch.allclose(row.params, parameter, rtol=1e-6, atol=1e-7)
            assert not row.gradient.any()


def test_rows_that_are_not_due_keep_every_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.rand(2, 40, generator=generator) for _ in range(4)]
    before = [matrix[1].clone() for matrix in matrices]
    due, rest = (0.5, 1.0, 0.0, 0.9, 0.1, 0.3, 1.0), (1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    matrices[1][0] = float("nan")
    adamw_rows(*matrices, torch.tensor([due, rest]).t().unsqueeze(-1))  # type: ignore[call-arg]
    assert all(torch.equal(matrix[1], old) for matrix, old in zip(matrices, before, strict=True))
    assert matrices[0][0].isnan().all()


def test_padding_stays_zero() -> None:
    trainer = trainer_after("bert", "classification", TRIALS, 20, bank=ROOM)
    for member in trainer.members.values():
        storage = member.adapter.storage
        assert not member.adapter.gradient.any()  # reading it makes the last step
        own = torch.zeros(storage.layout.size, dtype=torch.bool)
        rank = member.spec.hyper.rank
        for name, view in storage.layout.views(own).items():
            path = name.removeprefix("base_model.model.").partition(".lora_")[0]
            if "modules_to_save" in name:
                view.fill_(True)
            elif path in member.adapter.low_rank:
                (view[:rank] if "lora_A" in name else view[:, :rank]).fill_(True)
        for vector in (storage.params, storage.gradient, storage.exp_avg, storage.exp_avg_sq):
            assert not vector[~own].any()
        assert storage.exp_avg_sq[own].any()


def test_neighbours_and_the_place_of_a_slot_do_not_matter() -> None:
    alone = trainer_after("bert", "classification", TRIALS[1:2], 4, bank=ROOM).snapshot(1)
    trainer = trainer_after("bert", "classification", [TRIALS[3], TRIALS[0]], 3, bank=ROOM)
    trainer.evict(3)
    trainer.admit(TRIALS[1])
    advance(trainer, 4)
    among = trainer.snapshot(1)
    # A batched product may choose another kernel for another number of slots.
    assert all(torch.allclose(among.params[key], alone.params[key], atol=1e-6) for key in alone.params)


def test_a_row_is_clean_when_it_is_taken_again() -> None:
    fresh = trainer_after("bert", "classification", [TRIALS[2]], 3, bank=ROOM)
    trainer = trainer_after("bert", "classification", [TRIALS[1], TRIALS[3]], 3, bank=ROOM)
    trainer.evict(1)
    trainer.evict(3)
    trainer.admit(TRIALS[2])
    advance(trainer, 3)

    one, other = fresh.snapshot(2), trainer.snapshot(2)
    assert all(torch.equal(one.params[key], other.params[key]) for key in one.params)
    assert all(torch.equal(one.moments[key], other.moments[key]) for key in one.moments)


@pytest.mark.parametrize("trial", [TRIALS[0], TRIALS[1]], ids=["without dropout", "with dropout"])
def test_a_slot_moves_between_a_bank_and_a_loop(trial: TrialSpec) -> None:
    undisturbed = trainer_after("bert", "classification", [trial], 6, bank=ROOM).snapshot(trial.number)
    half = trainer_after("bert", "classification", [trial], 3, bank=ROOM).snapshot(trial.number)
    apart = trainer_of("bert", "classification")
    apart.admit(trial, half)
    advance(apart, 3)
    moved = apart.snapshot(trial.number)
    assert all(torch.allclose(moved.params[key], undisturbed.params[key], atol=1e-6) for key in moved.params)


def test_a_trial_that_does_not_fit_into_the_bank_trains_beside_it() -> None:
    drawn = trainer_after("bert", "classification", [TRIALS[1]], 3).snapshot(1)  # masks of a generator go on as such
    large = spec(4, rank=21, target="qv", batch_size=4)
    undisturbed = trainer_after("bert", "classification", [TRIALS[1], large], 6)
    trainer = trainer_after("bert", "classification", [TRIALS[0], large], 3, bank=ROOM)
    trainer.admit(TRIALS[1], drawn)
    advance(trainer, 3)
    rows = {number: member.adapter.storage.row for number, member in trainer.members.items()}
    assert rows[0] >= 0
    assert rows[1] == rows[4] == -1
    for number in (1, 4):
        mine, theirs = trainer.snapshot(number), undisturbed.snapshot(number)
        if number == 1:
            assert all(torch.allclose(mine.params[key], theirs.params[key], atol=1e-6) for key in mine.params)


def test_masks_of_another_kind_are_refused() -> None:
    trainer = trainer_of("bert", "classification")
    trainer.admit(TRIALS[1])
    with pytest.raises(CheckpointError, match="made in another way"):
        trainer.members[1].adapter.set_generator_state(torch.zeros(8, dtype=torch.uint8))


def test_half_the_rows_at_once_change_neither_gradient_nor_masks() -> None:
    whole, halved = (trainer_after("llama", "causal-lm", TRIALS[:2], 0, bank=ROOM) for _ in range(2))
    halved.members[1].halve_rows(MemoryError())
    for trainer in (whole, halved):
        advance(trainer, 4)
    for number in (0, 1):
        one, other = whole.snapshot(number), halved.snapshot(number)
        assert all(torch.allclose(one.params[key], other.params[key], atol=1e-6) for key in one.params)


@pytest.mark.parametrize("batch_size", [4, 3, 7], ids=["of equal batches", "fewer rows", "more rows"])
def test_a_slot_that_diverges_leaves_alone(batch_size: int) -> None:
    calm = trainer_after("bert", "classification", TRIALS[:1], 6, bank=ROOM).snapshot(0)
    wild = spec(5, rank=4, batch_size=batch_size, learning_rate=1e38, warmup=0.0, weight_decay=0.0)
    trainer = trainer_after("bert", "classification", TRIALS[:1], 0, bank=ROOM)
    trainer.admit(wild)
    failures = [failure for _ in range(6) for failure in trainer.round(list(trainer.members.values()))]
    assert [(failure.trial, failure.reason) for failure in failures] == [(5, StopReason.DIVERGED)]
    mine = trainer.snapshot(0)
    assert all(torch.allclose(mine.params[key], calm.params[key], atol=1e-6) for key in calm.params)


def test_a_bank_says_what_it_has_no_room_for() -> None:
    layers = PackedTrainer(tiny_model("bert"), workload()).layers("qv")
    bank = Bank(layers, {}, slots=1, rank=8, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="rank 9 is above the 8"):
        bank.take(9)
    storage = bank.take(8)
    with pytest.raises(OutOfMemory, match="all 1 slots"):
        bank.take(2)
    bank.give_back(storage)
    assert bank.take(2).row == storage.row


def test_few_shapes_cover_a_run() -> None:
    trainer = trainer_after("llama", "causal-lm", TRIALS, 12, bank=ROOM)
    together = trainer.bank_step
    assert isinstance(together, BankStep)
    assert len(together.shapes) <= 4
    assert [static_width(longest, 384) for longest in (3, 32, 33, 250, 257, 380)] == [32, 32, 64, 256, 384, 384]


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_trials_of_any_batch_size_and_length_share_a_micro_step(name: str, kind: str) -> None:
    sizes = {0: 1, 1: 5, 2: 2, 3: 8}
    trials = [replace(each, hyper=replace(each.hyper, batch_size=sizes[each.number])) for each in TRIALS]
    together, alone = trainer_after(name, kind, trials, 0, bank=ROOM), trainer_of(name, kind, bank=ROOM)
    for _ in range(6):
        assert together.micro_step(list(together.members.values())) == []
    assert [member.step for member in together.members.values()] == [6] * 4
    for trial in trials:
        alone.admit(trial)
        advance(alone, 6)
        mine, theirs = together.snapshot(trial.number), alone.snapshot(trial.number)
        assert all(torch.allclose(mine.params[key], theirs.params[key], atol=1e-6) for key in theirs.params)
        assert mine.tokens == theirs.tokens
        alone.evict(trial.number)


def test_a_bank_computes_logits_at_targets_alone() -> None:
    trainer = trainer_after("llama", "causal-lm", TRIALS, 0, bank=ROOM)
    asked: list[int] = []
    layer: Any = trainer.model.get_output_embeddings()  # type: ignore[operator]
    with layer.register_forward_hook(lambda module, given, out: asked.append(out.shape[:-1].numel())):
        trainer.micro_step(list(trainer.members.values()))
    (shape,) = trainer.bank_step.shapes  # type: ignore[union-attr]
    assert asked == [shape.targets]
    assert shape.targets < shape.total * shape.columns


def micro(rows: int, longest: int, **fields: torch.Tensor) -> MicroBatch:
    return MicroBatch({"input_ids": torch.zeros(rows, longest), **fields}, rows, longest, longest, 0, False, rows)


def test_batches_share_a_micro_step_unless_padding_costs_more_than_a_pass() -> None:
    assert bank_tokens([micro(4, 30), micro(2, 60)], 512, 8192) == 6 * 64
    assert bank_tokens([micro(4, 30), micro(2, 60)], 512, 6 * 64 - 1) == 0  # more than may be at once
    assert bank_tokens([micro(2, 512), micro(2, 30)], 512, 8192) == 4 * 512  # 960 tokens of padding
    assert bank_tokens([micro(2, 512), micro(3, 30)], 512, 8192) == 0  # 1,440
    pair = micro(2, 30, token_type_ids=torch.zeros(2, 30))
    assert bank_tokens([micro(2, 30), pair], 512, 8192) == 0


class NoValues(TorchDispatchMode):
    """Refuses operations that wait for a value of a tensor: a CUDA graph could not be recorded with them."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "lift_fresh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.WAITING), f"{func} waits for the device"
        if str(func).startswith("aten.index."):
            assert all(each is None or each.dtype != torch.bool for each in args[1]), "a mask as index waits for it"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("name", "kind"), [*MODELS, ("llama", "classification"), ("gpt2", "classification")])
def test_a_micro_step_waits_for_no_value(
    name: str, kind: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_after(name, kind, TRIALS[:3], 1, bank=ROOM, recompute=recompute)
    together = trainer.bank_step
    assert isinstance(together, BankStep)
    # transformers leaves its own shortcuts out while a graph is recorded.
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    with NoValues():
        for static in together._statics.values():
            together._compute(static)


def test_masks_keep_the_right_share_and_do_not_depend_on_extent() -> None:
    seeds, steps, first = (torch.tensor(values, dtype=torch.int32) for values in ([5, 9], [0, 3], [0, 0]))
    drawn = bits(seeds, steps, first, (4, 40, 200))
    limits = torch.tensor([keep_limit(0.1), keep_limit(0.0)], dtype=torch.int32).view(-1, 1, 1, 1)
    one, other = (layer_mask(drawn, path, limits) for path in ("layer.0.query", "layer.0.key"))
    assert float(one[0].float().mean()) == pytest.approx(0.9, abs=0.01)
    assert float((one[0] & other[0]).float().mean()) == pytest.approx(0.81, abs=0.01)
    assert one[1].all()
    later = bits(seeds, steps, first + 2, (2, 7, 30))
    assert torch.equal(later, drawn[:, 2:, :7, :30])


def test_what_a_diverged_slot_leaves_in_the_row_that_is_nobodys_harms_no_later_one() -> None:
    trials = [spec(number, target="qv", batch_size=size) for number, size in enumerate((4, 2, 4))]
    trainer = trainer_after("bert", "classification", trials, 1, bank=BankSize(slots=4, rank=8, targets=("qv",)))
    trainer.members[0].adapter.storage.params.fill_(float("inf"))
    assert [failure.reason for failure in trainer.round(list(trainer.members.values()))] == [StopReason.DIVERGED]
    trainer.admit(spec(3, target="qv", batch_size=2))
    advance(trainer, 2)  # three slots in a pass of four, of which the spare row fills one
    assert set(trainer.members) == {1, 2, 3}
