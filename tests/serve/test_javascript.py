"""OpenAI's JavaScript client against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import Served
from videox2l import Memory, VideoX2L

pytestmark = pytest.mark.slow

QUESTION = "what is in the video ?"
SCRIPT = """
import OpenAI from "openai";
const [url, memory, question] = process.argv.slice(2);
const client = new OpenAI({baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0});
const asked = {model: "demo", max_tokens: 8, messages: [{role: "user", content: [
  {type: "video_url", video_url: {url: `memory:${memory}`}}, {type: "text", text: question}]}]};
const whole = await client.chat.completions.create(asked);
const pieces = [];
let usage = null;
for await (const piece of await client.chat.completions.create(
    {...asked, stream: true, stream_options: {include_usage: true}})) {
  if (piece.choices.length) pieces.push(piece.choices[0].delta.content ?? "");
  usage = piece.usage ?? usage;
}
const models = await client.models.list();
let refused = null;
try { await client.chat.completions.create({...asked, n: 2}); } catch (error) { refused = [error.status, error.param]; }
console.log(JSON.stringify({text: whole.choices[0].message.content, finish: whole.choices[0].finish_reason,
  evidence: whole.x2l.evidence.length, pieces, usage, models: models.data.map((model) => model.id), refused}));
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client from npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node or npm on this machine: the JavaScript client is not tried")
    folder = tmp_path_factory.mktemp("javascript")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "openai@6"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install openai here: the JavaScript client is not tried ({done.stderr[-200:]})")
    return folder


def test_openais_javascript_client_streamed_and_not(package: Path, served: Served, demo: str) -> None:
    (package / "ask.mjs").write_text(SCRIPT)
    command = ["node", "ask.mjs", served.url, demo, QUESTION]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    truth = VideoX2L.from_pretrained("demo").ask(Memory.load(served.library / demo), QUESTION, max_new_tokens=8)
    assert (told["text"], told["finish"]) == (truth.text, truth.finish)
    assert "".join(told["pieces"]).strip() == truth.text
    assert told["evidence"] == len(truth.evidence)
    assert told["usage"]["completion_tokens"] == truth.cost.new_tokens
    assert told["models"] == ["demo"]
    assert told["refused"] == [400, "n"]
