"""Requests made from the OpenAPI schema, right and wrong ones: the service fails at none, and keeps to its schema."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis.strategies import one_of
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.serving.test_kill import serving


@schemathesis.serializer("application/x-ndjson", "application/jsonl", "application/vnd.apache.parquet")
def as_bytes(context: object, value: object) -> bytes:
    """The payload of a load is bytes, whatever they hold."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


_LONGEST = 6000  # characters of a query: as bytes in hex they stay below 64 kB, at which any HTTP server hangs up
CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


def fuzz(folder: Path, examples: int) -> None:
    with serving(f"sqlite:///{folder}/udr.sqlite", folder / "log") as (process, url):
        with httpx2.Client(base_url=url) as client:  # so that some requests find what they ask for
            client.post("/v1/pools", json={"name": "0"})
            rows = [{"id": "0", "input": "a text", "output": "y", "metadata": {"0": 1}}]
            client.post("/v1/pools/0/demonstrations", json={"demonstrations": rows})
        operations = [found.ok() for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
        assert len(operations) > 20
        for operation in operations:
            right_or_wrong = one_of(*(operation.as_strategy(mode) for mode in schemathesis.GenerationMode))

            @given(right_or_wrong)
            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def check(case: schemathesis.Case) -> None:
                assume(len(str(case.query)) < _LONGEST)
                case.call_and_validate(checks=CHECKS)

            check()
        assert process.poll() is None
        assert '"status": 5' not in (folder / "log").read_text()


def test_nothing_in_the_schema_makes_the_service_fail(tmp_path: Path) -> None:
    fuzz(tmp_path, 15)


@pytest.mark.slow
def test_nothing_in_the_schema_makes_the_service_fail_at_length(tmp_path: Path) -> None:
    fuzz(tmp_path, 500)
