"""Writes customer_*.jsonl beside this file: messages to three customers, and the desk that each belongs to.

Made by a rule, not by people: a message says who writes, and what about in words of that desk. The desks are others for
each customer, and there are more or fewer of them. Every run writes the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent

OPENINGS = ("Hello,", "Good morning,", "I have a question:", "This is urgent.", "Hi there,", "For the third time:")
CLOSINGS = ("Thanks.", "Can you call me back?", "I look forward to your answer.", "What can be done?", "Best wishes.")

DESKS: dict[str, dict[str, tuple[str, ...]]] = {
    "bank": {
        "cards": ("my card was swallowed by the machine.", "the new PIN does not work.", "my credit card is lost."),
        "loans": ("what rate would a mortgage have?", "I want to repay my loan early.", "can I borrow for a car?"),
        "transfers": ("money I sent has not arrived.", "a standing order ran twice.", "I typed the wrong account."),
    },
    "shop": {
        "delivery": ("the parcel never came.", "the courier left it in the rain.", "where is my order now?"),
        "returns": ("the shoes are too small.", "I want to send the lamp back.", "who pays for sending it back?"),
        "payment": ("I was charged twice.", "my voucher is refused.", "the invoice has a wrong name."),
        "stock": ("when will the blue one be there again?", "is the jacket sold in size M?", "do you still have it?"),
    },
    "clinic": {
        "appointments": ("I have to move my visit to May.", "is there a slot on Monday?", "I cannot come tomorrow."),
        "results": ("are my blood values there?", "I wait for the X-ray report.", "what does the test say?"),
    },
}


def rows(customer: str, count: int = 120) -> list[dict[str, str]]:
    """Messages to a customer in the order in which they are drawn."""
    chance = random.Random(customer)  # noqa: S311
    found = []
    for _ in range(count):
        desk = chance.choice(sorted(DESKS[customer]))
        said = chance.sample(DESKS[customer][desk], chance.randint(1, 2))
        text = " ".join((chance.choice(OPENINGS), *said, chance.choice(CLOSINGS)))
        found.append({"text": text, "label": desk})
    return found


if __name__ == "__main__":
    for name in DESKS:
        lines = "".join(json.dumps(row) + "\n" for row in rows(name))
        (FOLDER / f"customer_{name}.jsonl").write_text(lines, encoding="utf-8")
