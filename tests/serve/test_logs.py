"""What a server writes to standard error: a line of JSON for each event, and no secret in any."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import start
from videox2l.options import ServeOptions
from videox2l.serve.keys import add_key
from videox2l.serve.logs import LineFormatter

pytestmark = pytest.mark.slow


def test_lines_are_json_with_request_ids_and_without_secrets(tmp_path: Path, clip: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "keys"
    key = add_key(file, "anna:ask,ingest,admin")
    wrong = "x2l-" + key[4:][::-1]
    server = start(tmp_path / "library", "--api-key-file", str(file), "--log-format", "json", log=log)
    try:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            ids = [http.get("/v1/models").headers["x-request-id"]]
            ids.append(http.get("/v1/models", headers={"Authorization": f"Bearer {wrong}"}).headers["x-request-id"])
            http.get(f"/v1/files/{key}")
            http.get("/v1/files/a%0Ab", params={"key": key})
            http.post("/v1/session")
            http.get("/v1/models", headers={"Authorization": f"Basic {key}", "Cookie": f"x2l_session={key}"})
            http.post("/v1/uploads", json={"filename": key, "bytes": 1})
            data = "data:video/mp4;base64,c2VjcmV0IHBpY3R1cmVzIG9mIHRoZSB1c2Vy"
            part = {"type": "video_url", "video_url": {"url": data}}
            text = {"type": "text", "text": "what ?"}
            http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part, text]}]})
            cookie = http.cookies.get("x2l_session")
    finally:
        server.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    served = {line["request"]: line for line in lines if line["message"] == "request"}
    assert [(served[name]["status"], served[name].get("client")) for name in ids] == [(200, "anna"), (401, None)]
    assert {"time", "level", "logger", "method", "path", "seconds"} <= set(served[ids[0]])
    assert any(line["path"] == "/v1/files/a%0Ab" for line in served.values())
    assert any(line.get("state") == "failed" for line in lines)  # what the data URL holds is no video
    for secret in (key, wrong, cookie, data.partition(",")[2]):
        assert secret
        assert secret not in log.read_text()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_key_in_an_error_is_left_out(as_json: bool) -> None:
    key = "x2l-" + "k" * 43
    try:
        raise ValueError(f"cannot use {key} of Bearer {key}\nnor that")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "failed %s", (key,), (ValueError, error, None))
    line = LineFormatter(as_json).format(record)
    assert key not in line
    assert "cannot use ***" in line
    assert "\n" not in line


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="log_format must be text or json, got 'xml'"):
        ServeOptions(log_format="xml")
