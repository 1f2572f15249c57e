"""Writes preferences.jsonl beside this file: the tasks of instructions.jsonl, each with a short and a wordy answer.

Made by a rule, not by people: the chosen answer is the task's own, the rejected one says the same with a courtesy
before it and an offer after it. What is learnt is brevity, so that preference tuning can be tried without a download;
of real preferences it says nothing. Every run writes the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
TASKS = HERE / "instructions.jsonl"
TARGET = HERE / "preferences.jsonl"

COURTESIES = (
    "Of course! I would be happy to help you with that.",
    "Great question! Let me think about this step by step.",
    "Certainly! As an AI assistant, I can do that for you.",
    "Thank you for asking. This is a very interesting topic.",
    "Sure thing! Here is what I have found for you.",
    "What a wonderful request! Let us look at it together.",
)
OFFERS = (
    "I hope this helps! Please let me know if there is anything else.",
    "Feel free to ask if you would like to know more about it.",
    "If you need any further assistance, do not hesitate to ask.",
    "Let me know whether this answers your question.",
    "Would you like me to explain this in more detail?",
)


def rows() -> list[dict[str, str]]:
    """A pair for each task, in the order of the tasks."""
    chance = random.Random(7)  # noqa: S311
    found = []
    for line in TASKS.read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        prompt = f"{task['instruction']}\n\n{task['input']}" if task["input"] else task["instruction"]
        wordy = f"{chance.choice(COURTESIES)} {task['output']} {chance.choice(OFFERS)}"
        found.append({"prompt": prompt, "chosen": task["output"], "rejected": wordy})
    return found


if __name__ == "__main__":
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
