"""Completion and instruction tuning: which tokens carry loss, the loss itself, and generation."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Head, Row
from automl.tasks.batches import evaluation_batches
from automl.tasks.causal import Prompt, leading_tokens, prompts_of, sample_prompts, target_losses
from automl.tasks.generation import generate
from automl.tasks.templates import ALPACA, ALPACA_WITH_INPUT

END = "<|im_end|>"


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


@pytest.fixture
def row_of(settings_for: Callable[..., TaskSettings], tmp_path: Path) -> Callable[..., Row]:
    """The one training row that a record becomes."""

    def build(kind: str, record: Mapping[str, Any], tokenizer: Any, **values: Any) -> Row:
        validation = {"prompt": "v", "response": "v"} if kind == "instruction" else {"text": "v"}
        train, other = lines([record]), lines([validation])
        settings = settings_for(kind, train=train, validation=other, test_share=0.0, **values)
        task = make_task(settings)
        rows = task.rows(task.prepare(tokenizer, tmp_path / "cache"), "train")
        assert len(rows) == 1
        return rows[0]

    return build


def learnt(row: Row, tokenizer: Any) -> list[str]:
    """The texts that carry loss, one per unbroken run of labels."""
    runs: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def whole(row: Row, tokenizer: Any) -> str:
    text: str = tokenizer.decode(row["input_ids"])
    return text


def test_completion_learns_the_response_and_the_end(row_of: Callable[..., Row], plain_tokenizer: Any) -> None:
    row = row_of("completion", {"prompt": "the fox", "response": "jumps"}, plain_tokenizer)
    assert whole(row, plain_tokenizer) == "the fox\njumps" + END
    assert learnt(row, plain_tokenizer) == ["jumps" + END]


def test_a_prompt_that_ends_with_space_is_left_alone(row_of: Callable[..., Row], plain_tokenizer: Any) -> None:
    row = row_of("completion", {"prompt": "the fox ", "response": "jumps"}, plain_tokenizer)
    assert whole(row, plain_tokenizer) == "the fox jumps" + END


def test_plain_text_is_learnt_whole(row_of: Callable[..., Row], plain_tokenizer: Any) -> None:
    row = row_of("completion", {"text": "the quick fox"}, plain_tokenizer)
    assert learnt(row, plain_tokenizer) == ["the quick fox" + END]


def test_alpaca_text_without_a_chat_template(row_of: Callable[..., Row], plain_tokenizer: Any) -> None:
    record = {"instruction": "Add {these}.", "input": "1 {2}", "output": "3"}
    row = row_of("instruction", record, plain_tokenizer, max_length=500)
    expected = ALPACA_WITH_INPUT.replace("{instruction}", "Add {these}.").replace("{input}", "1 {2}")
    assert whole(row, plain_tokenizer) == expected + "3" + END
    assert learnt(row, plain_tokenizer) == ["3" + END]


@pytest.mark.parametrize("extra", [{}, {"input": ""}, {"input": None}], ids=["absent", "empty", "null"])
def test_alpaca_text_without_input(extra: dict[str, Any], row_of: Callable[..., Row], plain_tokenizer: Any) -> None:
    row = row_of("instruction", {"instruction": "Sing.", "output": "La"} | extra, plain_tokenizer, max_length=500)
    assert whole(row, plain_tokenizer) == ALPACA.format(instruction="Sing.") + "La" + END


CHAT = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"

# One conversation in every format, and the user's text it should give.
SAME: dict[str, tuple[dict[str, Any], str]] = {
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2"),
    "prompt_response": ({"prompt": "Add.", "response": "3"}, "Add."),
    "messages": (
        {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]},
        "Add.",
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}]}, "Add."),
}


@pytest.mark.parametrize(("record", "user"), SAME.values(), ids=SAME)
def test_every_format_goes_through_the_chat_template(
    record: dict[str, Any], user: str, row_of: Callable[..., Row], chat_tokenizer: Any
) -> None:
    row = row_of("instruction", record, chat_tokenizer)
    assert whole(row, chat_tokenizer) == CHAT.format(user, "3")
    assert learnt(row, chat_tokenizer) == ["3" + END]


def test_the_format_decides_where_several_would_fit(row_of: Callable[..., Row], chat_tokenizer: Any) -> None:
    record = {"prompt": "of the pair", "response": "pair", "instruction": "of Alpaca", "answer": "alpaca"}
    assert learnt(row_of("instruction", record, chat_tokenizer), chat_tokenizer) == ["pair" + END]


def test_columns_of_conversations_are_mapped(
    settings_for: Callable[..., TaskSettings], tmp_path: Path, chat_tokenizer: Any
) -> None:
    records = [{"ask": f"of Alpaca {row}", "answer": "alpaca", "prompt": "p", "response": "pair"} for row in range(20)]
    columns = {"instruction": "ask", "output": "answer"}
    task = make_task(settings_for("instruction", train=lines(records), format="alpaca", columns=columns))
    row = task.rows(task.prepare(chat_tokenizer, tmp_path / "cache"), "train")[0]
    assert learnt(row, chat_tokenizer) == ["alpaca" + END]


LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "one"},  # the same text as the user's: position decides, not the text
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "\n two  "},
    {"role": "user", "content": "and three?"},
]


def test_all_turns_of_the_assistant_are_learnt(row_of: Callable[..., Row], chat_tokenizer: Any) -> None:
    row = row_of("instruction", {"messages": LONG}, chat_tokenizer)
    # What the user says last has no answer to learn from and is left out.
    expected = chat_tokenizer.apply_chat_template(LONG[:5], tokenize=False)
    assert whole(row, chat_tokenizer) == expected.rstrip("\n")
    assert learnt(row, chat_tokenizer) == ["one" + END, "\n two  " + END]


PROMPTS = ["Add.", "Add", "Add.\n", "<|im_end|>", "3", "assistant\n3", "Ä 3 " * 9]


@pytest.mark.parametrize("kind", ["chat", "plain", "completion"])
def test_changing_the_prompt_does_not_change_the_mask(
    kind: str, settings_for: Callable[..., TaskSettings], chat_tokenizer: Any, plain_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer if kind == "chat" else plain_tokenizer
    records = [{"prompt": prompt, "response": "3 foxes"} for prompt in PROMPTS]
    settings = settings_for(
        "completion" if kind == "completion" else "instruction",
        train=lines(records),
        validation=lines(records[:1]),
        test_share=0.0,
        max_length=400,
    )
    task = make_task(settings)
    rows = task.rows(task.prepare(tokenizer, tmp_path / "cache"), "train")
    targets = [[label for label in row["labels"] if label != IGNORED] for row in rows]
    assert len(rows) == len(PROMPTS)
    assert targets == [tokenizer("3 foxes")["input_ids"] + [tokenizer.eos_token_id]] * len(PROMPTS)
    # They are the last tokens of the row, the end of turn among them although pad is the same token.
    assert all(row["labels"][-len(targets[0]) :] == targets[0] for row in rows)


def test_padding_carries_no_loss_although_pad_is_end_of_text(
    settings_for: Callable[..., TaskSettings], chat_tokenizer: Any, tmp_path: Path
) -> None:
    assert chat_tokenizer.pad_token_id == chat_tokenizer.eos_token_id
    records = [{"prompt": "a", "response": "b"}, {"prompt": "the fox", "response": "jumps over the lazy dog"}]
    settings = settings_for("instruction", train=lines(records), validation=lines(records), test_share=0.0)
    task = make_task(settings)
    rows = task.rows(task.prepare(chat_tokenizer, tmp_path / "cache"), "train")
    batch = task.collate(rows[:], chat_tokenizer.pad_token_id)
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert batch["labels"][number, :length].tolist() == row["labels"]
        assert (batch["labels"][number, length:] == IGNORED).all()
        assert batch["labels"][number, length - 1] == chat_tokenizer.eos_token_id


# Templates that differ from ChatML in a way that matters for the mask; what is learnt of the last and of all turns.
STRIPPING = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'].strip() }}"
    "{% if m['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
OPENING = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {
    "strips texts": (STRIPPING, ["one" + END, "two" + END]),
    "thinks in the last turn only": (THINKING, ["one" + END, "<think></think>\n two  " + END]),
    "opens a thought in the prompt": (OPENING, ["one" + END, "\n two  " + END]),
    "has no end of turn": (ENDLESS, ["one", "\n two  " + END]),
}


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_other_chat_templates(
    template: str, expected: list[str], row_of: Callable[..., Row], chat_tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = template
    assert learnt(row_of("instruction", {"messages": LONG}, tokenizer), tokenizer) == expected


REFUSING = {
    "refuses": ("{{ raise_exception('roles must alternate') }}", "row 1: the model's chat template refuses it: roles"),
    "changes": (
        "{% for m in messages %}{{ m['content'].upper() }}{% endfor %}",
        "row 1: the model's chat template cha",
    ),
}


@pytest.mark.parametrize(("template", "expected"), REFUSING.values(), ids=REFUSING)
def test_chat_templates_that_cannot_be_used(
    template: str, expected: str, row_of: Callable[..., Row], chat_tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=expected):
        row_of("instruction", {"messages": LONG}, tokenizer)


def test_a_conversation_needs_a_chat_template(row_of: Callable[..., Row], plain_tokenizer: Any) -> None:
    expected = "row 1: a conversation of system, user, assistant, user, assistant needs a chat template"
    with pytest.raises(DataError, match=expected):
        row_of("instruction", {"messages": LONG}, plain_tokenizer)


def test_begin_of_text_comes_first_and_once(bert_tokenizer: Any, plain_tokenizer: Any) -> None:
    assert leading_tokens(bert_tokenizer) == [2]
    assert leading_tokens(plain_tokenizer) == []


def test_rows_without_any_response_are_dropped(
    settings_for: Callable[..., TaskSettings], plain_tokenizer: Any, tmp_path: Path
) -> None:
    records = [{"prompt": "x", "response": "long " * 50}, {"prompt": "long " * 50, "response": "x"}]
    settings = settings_for(
        "completion", train=lines(records), validation=lines(records[:1]), test_share=0.0, max_length=20
    )
    task = make_task(settings)
    prepared = task.prepare(plain_tokenizer, tmp_path / "cache")
    assert prepared.rows == {"train": 1, "validation": 1, "test": 0}
    assert "max_length 20 cuts off the whole response of 1 of 2 train rows; they are left out" in prepared.notes
    row = task.rows(prepared, "train")[0]
    assert len(row["input_ids"]) == prepared.longest == 20
    assert task.rows(prepared, "test") == ()


def test_dropping_every_row_is_an_error(
    settings_for: Callable[..., TaskSettings], plain_tokenizer: Any, tmp_path: Path
) -> None:
    records = [{"prompt": f"{row} " * 50, "response": "x"} for row in range(30)]
    settings = settings_for("completion", train=lines(records), max_length=20)
    with pytest.raises(DataError, match=r"train.jsonl: max_length 20 cuts off the response of every train row"):
        make_task(settings).prepare(plain_tokenizer, tmp_path / "cache")


@pytest.fixture
def task_rows(settings_for: Callable[..., TaskSettings], chat_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    def build(**values: Any) -> tuple[Any, Sequence[Row]]:
        records = [
            {"prompt": f"the fox number {row}", "response": " ".join(["jumps"] * (1 + row % 7)) + f" {row}"}
            for row in range(24)
        ]
        settings = settings_for("instruction", train=lines(records), test_share=0.0, **values)
        task = make_task(settings)
        return task, task.rows(task.prepare(chat_tokenizer, tmp_path / "cache"), "train")

    return build


def test_the_loss_is_the_models_own(task_rows: Callable[..., Any], tiny_llama: torch.nn.Module) -> None:
    task, rows = task_rows()
    batch = task.collate(rows[:8], 1)
    parts = task.loss(tiny_llama, batch)
    assert parts.count == sum(label != IGNORED for row in rows[:8] for label in row["labels"])
    assert (parts.total / parts.count).item() == pytest.approx(tiny_llama(**batch).loss.item(), abs=1e-6)


class WithoutShortcut(torch.nn.Module):
    """A model that cannot compute the logits of chosen positions alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_the_loss_does_not_depend_on_which_logits_are_computed(
    task_rows: Callable[..., Any], tiny_llama: torch.nn.Module
) -> None:
    task, rows = task_rows()
    batch = task.collate(rows[:8], 1)
    plain = target_losses(WithoutShortcut(tiny_llama), batch)
    torch.testing.assert_close(target_losses(tiny_llama, batch), plain, atol=1e-6, rtol=0)


def test_logits_are_computed_at_targets_alone(tiny_llama: torch.nn.Module) -> None:
    ids = torch.randint(3, 20, (3, 8), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, IGNORED)
    for row, places in enumerate(([1, 2], [4], [6, 7])):
        labels[row, places] = ids[row, places]
    asked: list[torch.Size] = []
    layer: Any = tiny_llama.get_output_embeddings()  # type: ignore[operator]
    with layer.register_forward_hook(lambda module, given, out: asked.append(out.shape[:-1])):
        found = target_losses(tiny_llama, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    assert asked == [(1, 5)]  # and not (3, 5): of three rows and five columns
    assert found.shape == (5,)


@pytest.mark.parametrize("targets", ["all", "some"])
def test_losses_and_gradients_are_those_of_the_targets(tiny_llama: torch.nn.Module, targets: str) -> None:
    model = copy.deepcopy(tiny_llama).requires_grad_(True)
    ids = torch.randint(3, 20, (3, 6), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    if targets == "some":
        labels[0, :3] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = target_losses(model, batch)
    kept = labels[:, 1:] != IGNORED
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(logits[kept].float(), labels[:, 1:][kept], reduction="none")
    assert torch.equal(found, wanted)
    parameters = list(model.parameters())
    for one, other in zip(*(torch.autograd.grad(each.sum(), parameters) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_gradients_equal_the_models_own(task_rows: Callable[..., Any], tiny_llama: torch.nn.Module) -> None:
    model = copy.deepcopy(tiny_llama).requires_grad_(True)
    task, rows = task_rows()
    batch = task.collate(rows[:8], 1)
    parts = task.loss(model, batch)
    names = [name for name, _ in model.named_parameters()]
    ours = torch.autograd.grad(parts.total / parts.count, list(model.parameters()))
    theirs = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    for name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=name)


# peft 0.21 asks transformers 5.23 for it when it wraps a model.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_model_may_stand_in_for_the_model(
    task_rows: Callable[..., Any], tiny_llama: torch.nn.Module, chat_tokenizer: Any
) -> None:
    task, rows = task_rows(metric="rouge_l", generate_rows=2, max_new_tokens=4)
    batch = task.collate(rows[:8], 1)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=True)
    wrapped = get_peft_model(copy.deepcopy(tiny_llama), config).eval()  # type: ignore[arg-type]
    assert wrapped(**batch).loss.item() * task.loss(wrapped, batch).count == pytest.approx(
        task.loss(wrapped, batch).total.item(), rel=1e-6
    )
    with torch.no_grad():  # an untrained adapter changes nothing
        scores = task.evaluate(wrapped, iter([batch]), chat_tokenizer)
        assert scores == task.evaluate(tiny_llama, iter([batch]), chat_tokenizer)


def test_micro_batches_and_padding_change_nothing(task_rows: Callable[..., Any], tiny_llama: torch.nn.Module) -> None:
    task, rows = task_rows()
    total = task.loss(tiny_llama, task.collate(rows[:], 1))
    parts = [task.loss(tiny_llama, task.collate([row], 1)) for row in rows]
    assert sum(part.count for part in parts) == total.count
    assert sum(part.total.item() for part in parts) == pytest.approx(total.total.item(), rel=1e-5)


def test_evaluation_without_generation(
    task_rows: Callable[..., Any], tiny_llama: torch.nn.Module, chat_tokenizer: Any
) -> None:
    task, rows = task_rows()
    scores = task.evaluate(tiny_llama, evaluation_batches(task, rows, range(8), pad_id=1, max_tokens=200), None)
    parts = task.loss(tiny_llama, task.collate(rows[:8], 1))
    assert set(scores) == {"loss", "perplexity"}
    assert scores["loss"] == pytest.approx(parts.total.item() / parts.count, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(2.718281828459045 ** scores["loss"])


def test_evaluation_with_generation(
    task_rows: Callable[..., Any], tiny_llama: torch.nn.Module, chat_tokenizer: Any
) -> None:
    task, rows = task_rows(metric="rouge_l", generate_rows=4, max_new_tokens=5)
    scores = task.evaluate(
        tiny_llama, evaluation_batches(task, rows, range(len(rows)), pad_id=1, max_tokens=200), chat_tokenizer
    )
    assert set(scores) == {"loss", "perplexity", "exact_match", "rouge_l"}
    assert 0.0 <= scores["rouge_l"] <= 1.0
    again = task.evaluate(tiny_llama, iter([task.collate(rows[:], 1)]), chat_tokenizer)
    assert again["rouge_l"] == scores["rouge_l"]


def test_a_model_that_knows_the_answers_scores_one(
    task_rows: Callable[..., Any], tiny_llama: torch.nn.Module, chat_tokenizer: Any
) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(tiny_llama).requires_grad_(True)
    task, rows = task_rows(metric="exact_match", generate_rows=3, max_new_tokens=40)
    batch = task.collate(rows[:3], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        parts = task.loss(model, batch)
        optimizer.zero_grad()
        (parts.total / parts.count).backward()
        optimizer.step()
    with torch.no_grad():
        scores = task.evaluate(model, iter([batch]), chat_tokenizer)
    assert scores["exact_match"] == scores["rouge_l"] == 1.0


def test_generation_does_not_depend_on_its_batch(tiny_llama: torch.nn.Module, chat_tokenizer: Any) -> None:
    prompts = [chat_tokenizer(text)["input_ids"] for text in ("the fox", "a", "jumps over the lazy dog and")]
    together = generate(tiny_llama, prompts, chat_tokenizer, max_new_tokens=8)
    alone = [generate(tiny_llama, [prompt], chat_tokenizer, max_new_tokens=8)[0] for prompt in prompts]
    assert together == alone


def test_generation_is_greedy_whatever_the_model_prefers(tiny_llama: torch.nn.Module, chat_tokenizer: Any) -> None:
    prompt = chat_tokenizer("the quick")["input_ids"]
    ids = list(prompt)
    for _ in range(6):
        ids.append(int(tiny_llama(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    expected = chat_tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
    model = copy.deepcopy(tiny_llama)
    preferences = {"do_sample": True, "temperature": 5.0, "top_k": 50, "repetition_penalty": 3.0, "max_length": 20}
    for name, value in preferences.items():
        setattr(model.generation_config, name, value)
    assert generate(model, [prompt], chat_tokenizer, max_new_tokens=6) == [expected]


def test_the_prompt_of_a_row_is_what_comes_before_its_first_response() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9], [5, 6, 1, 1, 1], [7, 8, 1, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor(
            [[IGNORED, 6, IGNORED, 8, 9], [IGNORED, 6, 1, IGNORED, IGNORED], [7, 8, 1, IGNORED, IGNORED]]
        ),
    }
    # The last row is plain text: it has no prompt.
    assert list(prompts_of(batch)) == [Prompt((5,), (6,)), Prompt((5,), (6, 1))]


def test_the_sample_of_prompts_does_not_depend_on_their_order() -> None:
    prompts = [Prompt((number,), (number,)) for number in range(50)]
    assert sample_prompts(prompts, 5) == sample_prompts(prompts[::-1], 5)
    assert len(sample_prompts(prompts[:3], 5)) == 3


@pytest.mark.parametrize("kind", ["completion", "instruction"])
def test_text_tasks_train_a_language_model(kind: Any, settings_for: Callable[..., TaskSettings]) -> None:
    assert make_task(settings_for(kind)).head(None) == Head("causal-lm")  # type: ignore[arg-type]
