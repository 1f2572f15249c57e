"""Writes instructions.jsonl beside this file: short tasks with one right answer each, in the Alpaca fields.

Made up for this project, so that instruction tuning can be tried without a download; every run writes the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).with_name("instructions.jsonl")

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Portugal": "Lisbon",
    "Thailand": "Bangkok",
    "Chile": "Santiago",
    "Austria": "Vienna",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Vietnam": "Hanoi",
    "Cuba": "Havana",
    "Ireland": "Dublin",
    "Finland": "Helsinki",
    "Morocco": "Rabat",
    "Hungary": "Budapest",
    "Nepal": "Kathmandu",
}
OPPOSITES = {
    "early": "late",
    "narrow": "wide",
    "empty": "full",
    "cheap": "expensive",
    "ancient": "modern",
    "brave": "cowardly",
    "shallow": "deep",
    "noisy": "quiet",
    "smooth": "rough",
    "generous": "stingy",
    "rare": "common",
    "lazy": "industrious",
    "victory": "defeat",
    "arrival": "departure",
    "to expand": "to shrink",
    "to remember": "to forget",
    "to build": "to demolish",
    "to lend": "to borrow",
}
CONVERSIONS = (
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("kilograms", "grams", 1000),
    ("days", "hours", 24),
    ("litres", "millilitres", 1000),
    ("weeks", "days", 7),
    ("metres", "centimetres", 100),
    ("dozens", "pieces", 12),
)
POLITE = {
    "Send me the report now.": "Could you send me the report when you have a moment?",
    "Close the window.": "Would you mind closing the window?",
    "You are late again.": "Would it be possible for you to arrive on time next week?",
    "Give me your phone number.": "May I have your phone number?",
    "Stop talking.": "Could we have a moment of silence?",
    "Wait here.": "Would you wait here for a moment?",
    "Tell me the price.": "Could you tell me the price?",
    "Fix this mistake.": "Could you have another look at this passage?",
    "Move your car.": "Would you be so kind as to move your car?",
    "Speak louder.": "Could you speak a little louder?",
    "Bring me some water.": "May I have some water?",
    "I want a refund.": "Would it be possible to get a refund?",
}
REVIEWS = {
    "The soup was cold and the waiter ignored us.": "negative",
    "A warm room, a soft bed and a lovely breakfast.": "positive",
    "The zip broke on the second day.": "negative",
    "My daughter has read this book four times already.": "positive",
    "It does what it should, and the battery lasts for weeks.": "positive",
    "Two hours of my life that I will never get back.": "negative",
    "The paint flaked off after one winter.": "negative",
    "Clear instructions, and it worked at once.": "positive",
    "The staff went out of their way to help us.": "positive",
    "Loud, slow and far too expensive.": "negative",
    "The best bread in town.": "positive",
    "Nobody answered my three letters.": "negative",
    "The colours are even prettier than in the picture.": "positive",
    "It arrived with a crack across the screen.": "negative",
    "We laughed from the first minute to the last.": "positive",
    "The map is out of date and led us into a field.": "negative",
    "Light, sturdy, and it fits into every bag.": "positive",
    "After a month the handle came off.": "negative",
}
HEADLINES = {
    "The town library will stay open until ten in the evening during the exam weeks, the council said.": (
        "Library opens late for exams"
    ),
    "A farmer near the coast found a jar with two hundred silver coins while digging a well.": (
        "Farmer finds silver coins in field"
    ),
    "Heavy snow closed the mountain pass on Sunday; buses take the valley road until further notice.": (
        "Snow closes mountain pass"
    ),
    "The school choir won first prize at the festival after a year without a single rehearsal room.": (
        "Homeless choir wins first prize"
    ),
    "Ferry tickets will cost a tenth more from March, the operator announced, blaming the price of fuel.": (
        "Ferry fares rise in March"
    ),
    "Volunteers planted three thousand trees along the river on Saturday to keep the banks from washing away.": (
        "Volunteers plant trees on river bank"
    ),
    "The old cinema in Mill Street reopens next week with a new roof and its first film from 1931.": (
        "Old cinema reopens with its first film"
    ),
    "Engineers found the cause of the blackout: a squirrel had climbed into the transformer.": (
        "Squirrel caused the blackout"
    ),
}
STEPS = {
    "boil an egg": "1. Bring water to the boil. 2. Lower the egg in with a spoon. 3. Take it out after seven minutes.",
    "plant a tree": "1. Dig a hole twice as wide as the roots. 2. Set the tree upright. 3. Fill the hole and water it.",
    "post a letter": "1. Write the address on the envelope. 2. Put a stamp on it. 3. Drop it into a letter box.",
    "make tea": "1. Boil fresh water. 2. Pour it over the leaves. 3. Strain the tea after four minutes.",
    "sew on a button": "1. Thread a needle. 2. Stitch through the holes six times. 3. Knot the thread at the back.",
    "change a light bulb": "1. Switch off the power. 2. Unscrew the old bulb. 3. Screw in the new one.",
    "clean a window": "1. Wipe off the dust. 2. Wash the glass with soapy water. 3. Dry it with a cloth.",
    "borrow a book": "1. Find the book on the shelf. 2. Take it to the desk. 3. Show your library card.",
    "wrap a present": "1. Cut the paper to size. 2. Fold it over the box. 3. Fix the ends with tape.",
    "cross a road": "1. Stop at the kerb. 2. Look both ways. 3. Walk across when it is clear.",
}
# fmt: off
WORDS = (
    "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer",
    "island", "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pencil",
    "rabbit", "saddle", "tunnel", "umbrella", "violin", "window",
)
# fmt: on
PEOPLE = ("Anna Berg", "Omar Haddad", "Lucy Chen", "Paul Novak", "Ines Costa", "Tom Okafor", "Mia Rossi", "Jan Visser")
PLACES = ("Leeds", "Turin", "Bergen", "Porto", "Ghent", "Graz", "Split", "Galway")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
GOODS = ("pencils", "lamps", "chairs", "notebooks", "towels", "mugs", "cables", "seeds")


class Row(NamedTuple):
    """One example: what is asked, what it is asked about (may be empty), and the answer."""

    instruction: str
    input: str
    output: str


def rows() -> list[Row]:
    """All examples, shuffled."""
    chance = random.Random(7)  # noqa: S311
    found = [*_facts(), *_texts(), *_numbers(chance), *_sorting(chance), *_extraction(chance)]
    chance.shuffle(found)
    return found


def _facts() -> Iterator[Row]:
    for country, capital in CAPITALS.items():
        yield Row(f"What is the capital of {country}?", "", f"The capital of {country} is {capital}.")
    for word, opposite in OPPOSITES.items():
        yield Row("Give the opposite of this word.", word, f"The opposite of '{word}' is '{opposite}'.")
    for task, steps in STEPS.items():
        yield Row(f"Explain in three steps how to {task}.", "", steps)


def _texts() -> Iterator[Row]:
    for blunt, polite in POLITE.items():
        yield Row("Make this request polite.", blunt, polite)
    for review, verdict in REVIEWS.items():
        yield Row("Is this review positive or negative?", review, f"The review is {verdict}.")
    for story, headline in HEADLINES.items():
        yield Row("Write a short headline for this story.", story, headline)


def _numbers(chance: random.Random) -> Iterator[Row]:
    for source, target, factor in CONVERSIONS:
        for amount in chance.sample(range(2, 10), 3):
            yield Row(
                f"Convert {amount} {source} to {target}.", "", f"{amount} {source} are {amount * factor} {target}."
            )
    for _ in range(24):
        first, second = chance.randint(3, 20), chance.randint(3, 20)
        name, goods = chance.choice(PEOPLE).split()[0], chance.choice(GOODS)
        yield Row(
            "Solve the problem and answer in one sentence.",
            f"{name} has {first} {goods} and buys {second} more. How many {goods} does {name} have?",
            f"{name} has {first} + {second} = {first + second} {goods}.",
        )


def _sorting(chance: random.Random) -> Iterator[Row]:
    for _ in range(24):
        words = chance.sample(WORDS, 4)
        yield Row("Sort these words alphabetically.", ", ".join(words), ", ".join(sorted(words)))


def _extraction(chance: random.Random) -> Iterator[Row]:
    for _ in range(24):
        person, place, day = chance.choice(PEOPLE), chance.choice(PLACES), chance.choice(DAYS)
        yield Row(
            "Extract person, place and day.",
            f"On {day} {person} takes the train to {place} to see the new bridge.",
            f"person: {person}; place: {place}; day: {day}",
        )
    for _ in range(24):
        count, goods, place = chance.randint(2, 90), chance.choice(GOODS), chance.choice(PLACES)
        order = {"item": goods, "count": count, "city": place}
        yield Row(
            "Turn this order into JSON.", f"Please ship {count} {goods} to our shop in {place}.", json.dumps(order)
        )


if __name__ == "__main__":
    TARGET.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows()), encoding="utf-8")
