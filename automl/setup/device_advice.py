"""What a plan for devices says to a person: where each number comes from, what fits, and what would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from automl.methods.registry import METHODS
from automl.models.activations import vocabulary
from automl.models.strategies import MEANINGS, RECIPES
from automl.setup.device_plan import ROOM, Cell, Devices, Sizer, Variant, Way
from automl.space.sizes import gigabytes


class Line(NamedTuple):
    """One number of a plan: bytes on one device, how it comes about, and who says so."""

    what: str
    size: int
    formula: str
    source: str


def explained(sizer: Sizer, cell: Cell, devices: Devices) -> Iterator[Line]:
    """Every part of the memory of one strategy, in the order of the table."""
    load, hyper = sizer.load, sizer.variant.hyper
    part = cell.states
    recipe = RECIPES[sizer.variant.precision if sizer.is_in_place else "fp32"]
    where = {name: _where(name, sizer, cell, devices) for name in part._fields}
    yield Line(
        "frozen weights",
        part.frozen,
        _frozen(sizer) + where["frozen"],
        "" if sizer.variant.quantization is None else _QLORA,
    )
    trained = f"{sizer.trained:,} parameters"
    yield Line("trained weights", part.trained, f"{trained} x {recipe.weights} bytes{where['trained']}", _MIXED)
    yield Line("gradients", part.gradients, f"{trained} x {recipe.gradients} bytes{where['gradients']}", _MIXED)
    moments = "AdamW's two moments" + (", and the weights in float32" if recipe.optimizer == 12 else "")
    yield Line(
        "optimizer", part.optimizer, f"{trained} x {recipe.optimizer} bytes: {moments}{where['optimizer']}", _ADAMW
    )
    yield Line("activations", cell.activations, _activations(sizer, cell), _COUNTED)
    tokens = f"{cell.rows} x {load.length} tokens"
    logits = f"{tokens} x {vocabulary(sizer.model):,} outputs x 12 bytes: logarithms and two gradients in float32"
    yield Line("logits", cell.logits, logits if cell.logits else "a classifier has one row of them per text", _COUNTED)
    working = "gradients on their way through a block; or a copy of the trained weights in AdamW's step, if more"
    yield Line("working space", cell.working, working, _FOREACH)
    yield Line("buffers", cell.buffers, _buffers(cell, sizer), _DDP)
    planned = f"{ROOM:.0%} of {gigabytes(devices.memory)} are planned with: {gigabytes(devices.room)}"
    yield Line("total", cell.total, planned, f"largest micro-batch {cell.most_rows:,} rows of {load.length} tokens")
    if hyper.method == "full":
        held = gigabytes(4 * sizer.trained)
        yield Line("not counted", 0, f"a search keeps the untrained weights for its next trial: {held} more", "")


_MIXED = "Micikevicius et al. 2018; ZeRO (Rajbhandari et al. 2020), section 3.1"
_ADAMW = "Loshchilov & Hutter 2019; shared out as in ZeRO, figure 1"
_QLORA = "Dettmers et al. 2022 (LLM.int8()), 2023 (QLoRA), section 3"
_COUNTED = "counted on shapes: what autograd keeps, operation by operation"
_FOREACH = "torch.optim.AdamW (foreach)"
_DDP = "torch DistributedDataParallel, FSDP; DeepSpeed reduce_bucket_size"


def _where(name: str, sizer: Sizer, cell: Cell, devices: Devices) -> str:
    """How much of a state is on the device, if not all of it."""
    whole, here = getattr(sizer.whole, name), getattr(cell.states, name)
    if whole == here:
        return ""
    return f" / {devices.count} devices" if here else ", in the host's memory"


def _frozen(sizer: Sizer) -> str:
    held, quantization = sizer.variant.precision, sizer.variant.quantization
    total = sum(parameter.numel() for parameter in sizer.model.parameters())
    width = 4 if held == "fp32" else 2
    if quantization is None:
        rest = total - sizer.trained if sizer.is_in_place else total
        return f"{rest:,} parameters x {width} bytes ({held})"
    each = {"int8": "1 byte", "nf4": "half a byte", "fp4": "half a byte"}[quantization.kind]
    return (
        f"{total:,} parameters: {each} for each of a linear layer, its share of the scales ({quantization}), one layer"
        f" dense in float32 while it computes; {width} bytes for the others"
    )


def _activations(sizer: Sizer, cell: Cell) -> str:
    found, load = sizer.counted, sizer.load
    scale = load.length / found.tokens
    sizes = [(each.times, scale * (each.given if cell.recompute else each.kept)) for each in found.blocks]
    blocks = " + ".join(f"{times} block{'s' * (times > 1)} x {size / 1e6:,.2f} MB" for times, size in sizes)
    again = ""
    if cell.recompute:
        again = f" + one block run again {scale * max(each.kept for each in found.blocks) / 1e6:,.1f} MB"
    told = "" if found.is_counted else " (told from linear layers, which read and write so much)"
    return (
        f"{cell.rows} rows x ({blocks}{again} + {scale * found.rest / 1e6:,.2f} MB around them)"
        f" + what {sizer.variant.hyper.method} keeps, with {load.attention} attention{told}"
    )


def _buffers(cell: Cell, sizer: Sizer) -> str:
    if cell.strategy.startswith("zero-3"):
        return f"two blocks' gathered weights x {gigabytes(sizer.largest_block)}"
    if cell.strategy == "data-parallel":
        return "buckets as large as all gradients"
    return "buckets of the gradients" if cell.buffers else "nothing travels"


# Advice


def advice(ways: Sequence[Way], sizer: Sizer, devices: Devices) -> Iterator[str]:
    """Sentences on the first of the ways, and on the others if it does not fit. sizer: of the first way."""
    first = ways[0]
    best = first.best
    if first.refused:
        yield f"{first.variant} is not possible: {first.refused}"
        return
    yield from _not_quantised(first, sizer)
    if best is None:
        yield from _too_large(ways, sizer, devices)
        return
    yield _fits(first, best, sizer, devices)
    yield from _how(first, best, devices)
    yield from _packed(first, best)
    yield _file(first, sizer)


def _not_quantised(found: Way, sizer: Sizer) -> Iterator[str]:
    """Experts that are one tensor for all, where they are much of a model that is held in few bits."""
    if found.variant.quantization is None:
        return
    sizes = [each.numel() for each in sizer.model.parameters()]
    fused = sum(each.numel() for each in sizer.model.parameters() if each.dim() > 2)
    if fused > _MUCH * sum(sizes):
        yield (
            f"{fused:,} of {sum(sizes):,} parameters are in no linear layer (experts of a mixture, as one tensor):"
            f" {found.variant.quantization.kind} does not hold them in few bits, they stay in {found.variant.precision}"
        )


_MUCH = 0.1  # of all parameters


def _fits(found: Way, best: Cell, sizer: Sizer, devices: Devices) -> str:
    where = "one device is enough" if best.strategy == "one-device" else f"{best.strategy}: {MEANINGS[best.strategy]}"
    again = ", with gradient checkpointing" if best.recompute else ""
    fewer = f": accumulate gradients for batches of {sizer.load.rows}" if best.rows < sizer.load.rows else ""
    host = f"; the host holds {gigabytes(best.host)} for each device" if best.host else ""
    return (
        f"{found.variant}: {where}; {gigabytes(best.total)} of the {gigabytes(devices.room)} planned with are taken by"
        f" a micro-batch of {best.rows} x {sizer.load.length} tokens{again}; up to {best.most_rows:,} rows fit{fewer}"
        f"{host}"
    )


def _how(found: Way, best: Cell, devices: Devices) -> Iterator[str]:
    variant = found.variant
    model = f", model: {{quantization: {variant.quantization.kind}}}" if variant.quantization else ""
    if best.strategy == "one-device":
        yield f"in a space file: run: {{precision: {variant.precision}}}{model}"
        if devices.count > 1:
            yield f"{devices.count} devices train {devices.count} trials (or packs of trials) at a time, one on each"
        return
    if found.variant.hyper.method == "full":
        yield "automl trains full on one device in fp32"
        return
    if best.strategy == "zero-3" and _is_shared_out(variant):
        yield f"in a space file: run: {{shards: {devices.count}, precision: {variant.precision}}}{model}"
        return
    yield (
        "automl shares trials out as zero-3 alone, in fp32 or bf16, whole or in 4 bits (run: {shards: N});"
        f" {best.strategy} of {variant} is for a program of yours"
    )


def _is_shared_out(variant: Variant) -> bool:
    """Whether several processes can hold such a trial together."""
    is_in_eight = variant.quantization is not None and variant.quantization.kind == "int8"
    return METHODS[variant.hyper.method].shardable and variant.precision in ("fp32", "bf16") and not is_in_eight


def _packed(found: Way, best: Cell) -> Iterator[str]:
    slots = found.slots
    if best.recompute and slots.most <= 1:
        yield "automl recomputes activations in packs alone; a trial by itself works on fewer rows at once instead"
    if slots.reason:
        yield f"slots: {slots.reason}"
    elif best.strategy == "one-device":
        usual = f"; slots: auto takes {slots.usual}" if slots.usual < slots.most else ""
        room = f"up to {slots.most} trials packed" if slots.most > 1 else "one trial at a time"
        yield f"slots: {room} on one device{', sharing the frozen weights' * (slots.most > 1)}{usual}"


def _file(found: Way, sizer: Sizer) -> str:
    whole = sum(parameter.numel() for parameter in sizer.model.parameters())
    share = f"; the model has {whole / max(1, found.trained):,.0f} times as many" if found.trained < whole else ""
    what = "the trained model" if found.variant.hyper.method == "full" else "a trained adapter"
    return (
        f"{what} is {gigabytes(2 * found.trained)} in 16 bits, {gigabytes(4 * found.trained)} in 32"
        f" ({found.trained:,} parameters{share})"
    )


def _too_large(ways: Sequence[Way], sizer: Sizer, devices: Devices) -> Iterator[str]:
    first = ways[0]
    least = min(first.cells, key=lambda cell: cell.total)
    yield (
        f"{first.variant} does not fit {devices}: at the least {gigabytes(least.total)} of {gigabytes(devices.room)}"
        f" ({least.strategy}{', with gradient checkpointing' * least.recompute})"
    )
    for other in ways[1:]:
        best = other.best
        if best is not None:
            yield f"{other.variant} fits: {best.strategy}, {gigabytes(best.total)}, up to {best.most_rows:,} rows"
    if least.activations + least.logits > least.total / 2:
        yield "most of it is activations and logits: shorter rows (--max-length) are what helps"
