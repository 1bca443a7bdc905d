"""The OpenAPI description against a real server: requests that it allows, and many that it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Served, start

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("VIDEOX2L_FUZZ", "4"))
"""Requests of each kind."""
QUIET = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[Served]:
    """A server of its own: what is fuzzed leaves files behind."""
    server = start(tmp_path_factory.mktemp("library"), "--allow-files", str(clip.parent))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def ids(fuzzed: Served, clip: Path) -> dict[str, str]:
    """The ids of a file and of a memory that are there."""
    with clip.open("rb") as file:
        sent = httpx.post(f"{fuzzed.url}/v1/files", files={"file": file}).json()["id"]
    made = httpx.post(f"{fuzzed.url}/v1/memories", json={"file_id": sent, "options": {"fps": 0.5}}).json()["id"]
    fuzzed.memory(made)
    return {"files": sent, "memories": made}


CONFIG = "schemathesis.toml"
CONFIGURED = """
[[operations]]  # a file may hold anything, so nothing that is sent as one is wrong
include-path-regex = "/v1/files$"
include-method = "POST"
checks.negative_data_rejection.enabled = false
"""


def fuzz(described: str, server: Served) -> tuple[int, str]:
    """Run schemathesis against a server; return its exit status and report. It tries wrong requests too."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", described, "--url", server.url, "--no-color"]
    (server.library / CONFIG).write_text(CONFIGURED)
    command += [
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        str(EXAMPLES),
        "--request-timeout",
        "60",
        "--seed",
        "1",
    ]
    # What is right in form may still be refused: an id that nothing has, an option that nobody knows.
    command += ["--exclude-checks", "positive_data_acceptance", "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=server.library, timeout=800, check=False)
    return done.returncode, done.stdout + done.stderr


def test_responses_are_as_described_and_none_is_a_server_error(fuzzed: Served) -> None:
    status, report = fuzz(f"{fuzzed.url}/openapi.json", fuzzed)
    assert status == 0, report


def test_a_response_that_is_not_described_is_found(fuzzed: Served, tmp_path: Path) -> None:
    described = httpx.get(f"{fuzzed.url}/openapi.json").json()
    path = "/v1/memories/{name}"
    del described["paths"][path]["get"]["responses"]["4XX"]
    described["paths"] = {path: {"get": described["paths"][path]["get"]}}
    (tmp_path / "openapi.json").write_text(json.dumps(described))
    status, report = fuzz(str(tmp_path / "openapi.json"), fuzzed)
    assert (status, "Undocumented" in report) == (1, True), report


def test_responses_about_what_is_there_are_as_described(fuzzed: Served, ids: dict[str, str]) -> None:
    described = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    met = set()

    def run(operation: Any, change: Any) -> None:
        @QUIET
        @given(case=operation.as_strategy())
        def try_(case: Any) -> None:
            change(case)
            excluded = [schemathesis.checks.negative_data_rejection, schemathesis.checks.positive_data_acceptance]
            met.add((operation.path, case.call_and_validate(timeout=60, excluded_checks=excluded).status_code))

        try_()

    def asked(case: Any) -> None:
        content = [{"type": "file", "file": {"file_id": ids["files"]}}, {"type": "text", "text": "what is there ?"}]
        case.body = {**case.body, "messages": [{"role": "user", "content": content}], "max_tokens": 2, "model": None}

    for result in described.get_all_operations():
        operation = result.ok()
        if operation.method == "get" and "{name}" in operation.path:
            kind = operation.path.split("/")[2]
            run(operation, lambda case, kind=kind: case.path_parameters.update(name=ids[kind]))
        elif operation.path.endswith("/completions"):
            run(operation, asked)
    served = {path for path, status in met if status == 200}
    assert {path for path, _ in met} - served <= {"/v1/chat/completions"}  # few of its random options hold
