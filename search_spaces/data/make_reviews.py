"""Writes reviews.jsonl beside this file: reviews of a hotel, the topics that they speak of, and their stars.

Made by a rule, not by guests: a review says something good or bad of one to four topics, and its stars follow from how
much of it is good. So regression and several labels at once can be tried without a download; of real reviews it says
nothing. Every run writes the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "reviews.jsonl"

GOOD = {
    "room": ("The bed was wonderfully soft.", "Our room was spotless.", "We loved the view from the window."),
    "food": ("Breakfast was delicious.", "The kitchen cooks with real care.", "Even the coffee was excellent."),
    "staff": ("Everybody at the desk was kind.", "The porter helped us at once.", "They remembered our names."),
    "price": ("It was worth every cent.", "Such a low price for so much.", "A bargain for a weekend."),
    "noise": ("The nights were perfectly quiet.", "We slept without hearing a car.", "So calm a street is rare."),
}
BAD = {
    "room": ("The mattress sagged.", "Our room smelled of smoke.", "The shower was broken and mouldy."),
    "food": ("Breakfast was cold and stale.", "The soup tasted of nothing.", "They had run out of coffee by eight."),
    "staff": ("The man at the desk was rude.", "Nobody answered the bell.", "They argued about our booking."),
    "price": ("Far too expensive.", "They charged us twice for parking.", "An outrageous bill for one night."),
    "noise": ("The bar below was loud until three.", "We heard every step next door.", "Trucks woke us at five."),
}


def rows(count: int = 400) -> list[dict[str, Any]]:
    """Reviews in the order in which they are drawn; no text is there twice."""
    chance = random.Random(7)  # noqa: S311
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        topics = sorted(chance.sample(sorted(GOOD), chance.randint(1, 4)))
        praise = [chance.random() < 0.5 for _ in topics]
        said = [chance.choice((GOOD if good else BAD)[topic]) for topic, good in zip(topics, praise, strict=True)]
        chance.shuffle(said)
        text = " ".join(said)
        stars = 1 + round(4 * sum(praise) / len(praise))
        found.setdefault(text, {"text": text, "topics": topics, "stars": stars})
    return list(found.values())


if __name__ == "__main__":
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
