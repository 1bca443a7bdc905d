"""Finding a model's files, and what is said when they cannot be used; models spread over devices; 4 and 8 bits."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.test_loading import ids, save
from videox2l import ArraySource, Memory, ModelError, SettingsError, VideoX2L
from videox2l.cli.app import app
from videox2l.engine.cache import BufferCache
from videox2l.errors import ModelWarning

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen2_5_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(folder: Path | str, **options: Any) -> VideoX2L:
    return VideoX2L.from_pretrained(str(folder), **options)


def refused(folder: Path | str, pattern: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=pattern) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nothing", "is no folder")
    refused(folder / "config.json", r"is a file: give the folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"has no config\.json: give the folder")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}')
    refused(lora, r"is a LoRA adapter of Qwen/Qwen2\.5-VL-7B-Instruct, no whole model: merge it")
    (tmp_path / "empty" / "model-q4.gguf").touch()
    refused(tmp_path / "empty", "holds GGUF files")
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "config.json").touch()
    refused(tmp_path / "two", r"folders in it have one: a, b")
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json of .* is no JSON object")


def test_pickled_weights_are_never_read(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    load(folder)  # there are safetensors beside it
    weights.unlink()
    refused(folder, r"has its weights as pickle alone \(pytorch_model\.bin\), which is never read")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, r"has no weights: neither model\.safetensors nor")


def test_weights_that_do_not_fill_the_model(folder: Path) -> None:
    # copies: older releases of safetensors map the file, which is written anew below
    weights = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    name = next(key for key in weights if "layers.1.mlp.up_proj" in key)
    save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    refused(folder, r"do not fill the model .*: 1 tensors are missing, such as .*layers\.1\.mlp\.up_proj")
    more = {name.replace("layers.1", "layers.9"): weights[name].clone()}
    save_file({**weights, **more}, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(ModelWarning, match=r"1 tensors .* have no place .*\.layers\.9\."):
        load(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    refused(folder, "safetensors")


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, r"has no tokenizer \(none of tokenizer\.json")


def test_devices_and_precisions_that_are_not_there(folder: Path) -> None:
    with pytest.raises(SettingsError, match="device 'cuda:7' cannot be used"):
        load(folder, device="cuda:7")
    with pytest.raises(SettingsError, match="device='cpu' and device_map='auto' exclude each other"):
        load(folder, device="cpu", device_map="auto")
    with pytest.raises(SettingsError, match="quantize='3bit' is not known: use 4bit, 8bit"):
        load(folder, quantize="3bit")
    if find_spec("bitsandbytes") is None:
        refused(folder, r"quantize='4bit' needs bitsandbytes: pip install 'videox2l\[quantize\]'", quantize="4bit")
    if find_spec("optimum") is None:  # the config reaches transformers, which asks for its package
        from transformers import QuantoConfig

        refused(folder, "optimum-quanto", quantize=QuantoConfig("int8"))


def test_half_of_the_model_on_disk_answers_the_same(folder: Path, video: np.ndarray) -> None:
    """accelerate keeps what is mapped to "disk" out of memory, and brings it for each forward."""
    expect = load(folder, device="cpu")
    spread = {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "disk"}
    spread |= {"model.language_model.layers.1": "disk", "model.language_model.embed_tokens": "disk"}
    whole = [name for name, _ in expect.backbone.model.named_modules()]
    parts = {name: at for name, at in spread.items() if name in whole and name != "model.language_model"}
    rest = [f"model.language_model.{name}" for name, _ in expect.backbone.decoder.named_children()]
    rest += [f"model.language_model.layers.{i}" for i in range(3)]
    for name in rest:
        if name != "model.language_model.layers":
            parts.setdefault(name, "cpu")
    found = load(folder, device_map=parts, dtype="float32")
    assert any(weight.is_meta for weight in found.backbone.model.parameters())
    assert found.backbone.device == torch.device("cpu")
    assert found.identity == expect.identity
    assert ids(found, video) == ids(expect, video)
    everywhere = load(folder, device_map={"": "cpu"}, dtype="float32")
    assert ids(everywhere, video) == ids(expect, video)


def test_kvs_lie_where_their_layer_is() -> None:
    """Levels come from host memory; each layer's columns must go to the layer's own device, appended first or later."""
    devices = [torch.device("cpu"), torch.device("meta")]
    cache = BufferCache(2, 8, devices)
    cache.append(*torch.randn(2, 2, 1, 3, 4))
    cache.append(*torch.randn(2, 2, 1, 3, 4))
    assert [layer.keys.device for layer in cache.layers] == devices
    room = cache.extend(20)
    assert [keys.device for keys, _ in room] == devices
    assert len(cache) == 26


# --- the hub, offline and as a server that says no --------------------------------------------------------------------

ASK = """
import sys, warnings, numpy as np
warnings.simplefilter("ignore")
from videox2l import ArraySource, ModelError, VideoX2L
for name, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        x2l = VideoX2L.from_pretrained(name, revision=revision or None)
        memory = x2l.ingest(ArraySource(np.zeros((4, 32, 32, 3), np.uint8)))
        print("ok", x2l.identity["source"], memory.identity["source"])
    except ModelError as error:
        print("error", error)
"""


def ask(home: Path, *names: str, **env: str) -> list[str]:
    whole = {**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([sys.executable, "-c", ASK, *names], env=whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_hub_ids_offline(saved: Path, tmp_path: Path) -> None:
    """A cache in the hub's layout; the commit is recorded, and what is missing is said with the cache's folder."""
    repository = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    bare = tmp_path / "hub" / "models--owner--bare"
    (bare / "snapshots" / COMMIT).mkdir(parents=True)
    shutil.copy(saved / "config.json", bare / "snapshots" / COMMIT)
    (bare / "refs").mkdir()
    (bare / "refs" / "main").write_text(COMMIT)
    found = ask(
        tmp_path, "owner/name", "", "owner/name", COMMIT, "owner/other", "", "owner/bare", "", HF_HUB_OFFLINE="1"
    )
    assert found[:2] == [f"ok owner/name@{COMMIT} owner/name@{COMMIT}"] * 2
    assert found[2] == (
        f"error 'owner/other' is not in the cache {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set: fetch it first "
        "('hf download owner/other'), or unset HF_HUB_OFFLINE"
    )
    assert found[3].startswith("error 'owner/bare' has no tokenizer")


class _No(http.server.BaseHTTPRequestHandler):
    """A hub that answers as the real one does for a repository that may not be read."""

    def do_HEAD(self) -> None:
        code = {"gated": "GatedRepo", "absent": "RepoNotFound", "name": "RevisionNotFound"}
        self.send_response(403 if "gated" in self.path else 404)
        self.send_header("X-Error-Code", next(value for key, value in code.items() if key in self.path))
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _No) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_a_hub_that_says_no(endpoint: str, tmp_path: Path) -> None:
    names = ("owner/gated", "", "owner/absent", "", "owner/name", "v9", "too/many/../parts", "")
    gated, absent, revision, odd = ask(tmp_path, *names, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", NO_PROXY="*")
    assert gated.startswith("error 'owner/gated' is gated: accept its licence at https://huggingface.co/owner/gated")
    assert absent.startswith("error 'owner/absent' is neither a folder here nor a repository on the hub")
    assert revision.startswith("error 'owner/name' has no revision 'v9'")
    assert odd.startswith("error ")


def test_where_a_model_came_from_is_told_but_does_not_count(saved: Path, tmp_path: Path, video: np.ndarray) -> None:
    """A memory made with a hub's copy of a model can be asked, and gone on with, by a local copy."""
    local = load(saved)
    fetched = VideoX2L(load(saved).backbone, f"owner/name@{COMMIT}")
    memory = fetched.ingest(ArraySource(video, fps=1.0), store=tmp_path / "one")
    head = json.loads(next((tmp_path / "one").glob("manifest*")).read_text())
    assert json.dumps(head).count(COMMIT) == 1
    assert local.ask(Memory.load(tmp_path / "one"), "What happens?", max_new_tokens=2)
    assert local.ingest(ArraySource(video, fps=1.0)).fingerprint() == memory.fingerprint()


def test_loading_options_on_the_command_line(folder: Path) -> None:
    media = Path(__file__).parent / "media" / "nasa_13013.mp4"

    def run(*args: str) -> str:
        done = CliRunner().invoke(app, ["ask", str(media), "What happens?", "--model", str(folder), *args])
        assert done.exit_code in (1, 2)
        return done.stderr.removeprefix("error: ")

    assert run("--quantize", "2bit").startswith("quantize='2bit' is not known")
    assert run("--device-map", "{x").startswith("--device-map: '{x' is no JSON")
    assert run("--device-map", "auto", "--device", "cpu").startswith("device='cpu' and device_map='auto'")
