"""A judge for `metric: {command: [python, judge.py], direction: maximize}`: asks a model by an OpenAI-compatible API.

Set AUTOML_METRIC_URL (http://127.0.0.1:8000/v1), AUTOML_METRIC_MODEL and, if the service wants one, AUTOML_METRIC_KEY.
Answers the mean grade, from 0 to 1. The standard library is all it needs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

QUESTION = """Grade an answer from 0 (wrong) to 10 (as good as the reference). Reply with the number alone.

Question: {prompt}
Reference: {response}
Answer: {prediction}"""
AT_ONCE = 8
SECONDS = 30


def grade(row: dict[str, Any]) -> float:
    """Grade of one answer, in [0, 1]; 0 if the reply holds no number."""
    message = {"role": "user", "content": QUESTION.format(**row)}
    body = {"model": os.environ["AUTOML_METRIC_MODEL"], "messages": [message], "temperature": 0, "max_tokens": 8}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("AUTOML_METRIC_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    url = os.environ["AUTOML_METRIC_URL"].rstrip("/") + "/chat/completions"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        reply = json.load(answer)["choices"][0]["message"]["content"]
    number = re.search(r"\d+(\.\d+)?", reply)
    return min(float(number[0]), 10.0) / 10.0 if number else 0.0


def main() -> None:
    """Grade the rows of standard input; a service that fails ends the program, which automl then asks again."""
    rows = [json.loads(line) for line in sys.stdin]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        grades = list(pool.map(grade, rows))
    print(sum(grades) / len(grades))


if __name__ == "__main__":
    main()
