"""Everything that the API's own description allows, and what it does not: no error of ours, every answer as described.

Requests are drawn from /api/v1/openapi.json (R-28). AUTOML_FUZZ_EXAMPLES: requests of each operation, 40 unless given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automl.storage.sql import open_database
from tests.dashboards.serving import TOKEN, Answer, Site, site
from tests.dashboards.test_api import SPACE
from tests.databases import fresh_postgres, fresh_sqlite
from tests.report.studies import add_study, space_of

EXAMPLES = int(os.environ.get("AUTOML_FUZZ_EXAMPLES", "40"))
UNDESCRIBED = (400, 404, 405)
"""What may be answered beside what is described: no such address, an address or a body that cannot be read."""

_NASTY = (
    "topics",
    "nightly",
    "f" * 32,
    "..",
    "%",
    "'; DROP TABLE studies; --",
    "\x00",
    "\ud800",
    "ü",
    "𝕏",
    "-1",
    "1e3",
)
_numbers = st.one_of(st.integers(), st.integers(min_value=-(10**40), max_value=10**40), st.floats())
_texts = st.one_of(st.sampled_from(_NASTY), st.text(), st.text(alphabet=st.characters(codec=None), max_size=50))
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)),
    max_leaves=12,
)
_spaces = st.one_of(_texts, st.sampled_from((SPACE, "study: x", "{}", "- 1", "a: b: c")))
_bodies = st.one_of(
    _json,
    st.fixed_dictionaries({"space": st.one_of(_spaces, _json)}, optional={"submitted_by": _json, "more": _json}),
).map(lambda value: json.dumps(value).encode())
_raw_bodies = st.one_of(_bodies, st.binary(max_size=200))


class Operation(NamedTuple):
    """One line of the description."""

    method: str
    path: str
    described: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


OPERATIONS = (
    *("GET /api/v1/studies", "GET /api/v1/studies/{study}", "GET /api/v1/studies/{study}/trials"),
    *("GET /api/v1/schedules", "GET /api/v1/schedules/{name}/nights", "GET /api/v1/doctor", "GET /api/v1/submissions"),
    *("POST /api/v1/submissions", "GET /api/v1/submissions/{identity}", "POST /api/v1/submissions/{identity}/cancel"),
)


class Described:
    """A served database, and what its API says of itself."""

    def __init__(self, served: Site) -> None:
        self.site = served
        self.document = served.ask("/api/v1/openapi.json").json
        self.operations = {
            str(each): each
            for path, methods in self.document["paths"].items()
            for each in (Operation(method.upper(), path, what) for method, what in methods.items())
        }

    def check(self, operation: Operation, answer: Answer) -> None:
        """Whether the answer is one that the description knows."""
        assert answer.status < HTTPStatus.INTERNAL_SERVER_ERROR, answer.text[:500]
        assert "Traceback" not in answer.text
        known = operation.described["responses"].get(str(answer.status))
        if known is None:
            assert answer.status in UNDESCRIBED, (answer.status, answer.text[:300])
            schema: Any = {"$ref": "#/components/schemas/Refused"}
        else:
            schema = known["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json, {**schema, "components": self.document["components"]})
        if answer.status >= HTTPStatus.BAD_REQUEST:
            assert "\n" not in answer.json["error"]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def described(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Described]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    url = fresh_sqlite(folder) if request.param == "sqlite" else fresh_postgres()
    with open_database(url, create=False) as database:
        add_study(database, space_of(folder, trials=6), trials=6)
    with site(url) as running:
        yield Described(running)


def test_all_operations_are_fuzzed(described: Described) -> None:
    assert set(described.operations) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_request_is_answered_as_described(described: Described, name: str) -> None:
    operation = described.operations[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        body = data.draw(_raw_bodies, "body") if operation.method == "POST" else None
        headers = {
            "Authorization": f"Bearer {TOKEN}",
            **({"Content_Type": "application/json"} if body is not None else {}),
        }
        described.check(operation, described.site.ask(_address(operation, data), operation.method, body, **headers))

    ask()


def _address(operation: Operation, data: st.DataObject) -> str:
    path, pairs = operation.path, []
    for parameter in operation.described.get("parameters", ()):
        value = data.draw(_value(parameter["schema"]), parameter["name"])
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", _escaped(value))
        elif data.draw(st.booleans()):
            pairs.append(f"{parameter['name']}={_escaped(value)}")
    for name, value in data.draw(st.dictionaries(_texts, _texts, max_size=2), "more").items():
        pairs.append(f"{_escaped(name)}={_escaped(value)}")
    return path + ("?" + "&".join(pairs) if pairs else "")


def _value(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """What the schema allows, about half of the time."""
    anything = st.one_of(_texts, _numbers, st.binary(max_size=30))
    if "enum" in schema:
        return st.one_of(st.sampled_from(schema["enum"]), anything)
    if schema.get("type") == "integer":
        return st.one_of(st.integers(schema.get("minimum", 0), schema.get("maximum", 100)), anything)
    return anything


def _escaped(value: object) -> str:
    plain = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return quote_from_bytes(plain, safe="")
