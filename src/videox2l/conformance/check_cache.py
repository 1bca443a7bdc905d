"""Whether a model is served rightly: checked in brief when it is first loaded, and remembered.

The check runs a made-up clip of six small frames through the adapter and through the stock model
(`videox2l.conformance`): about ten short passes. Its verdict is a small JSON file in the cache folder. The name stands
for weights, processor, precision, device and the versions of transformers, torch and this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from videox2l.conformance import EXACTNESS, CheckResult, HasStock, made_up_clip
from videox2l.conformance.case import TestCase
from videox2l.conformance.key_heads import KeyHeads, find_votes
from videox2l.engine.backbone import Backbone
from videox2l.errors import ModelError
from videox2l.memory.disk.object_cache import cache_folder
from videox2l.types import without_source
from videox2l.version import __version__

BRIEF = ("positions", "chunk boundaries", "rotation", "exact")
_FRAMES = 6


def check_once(backbone: Backbone, identity: Mapping[str, str]) -> None:
    """Check a model in brief, or look up how it came out before.

    Raises ModelError that names the first difference. Backbones that give no access to a stock model are not checked.
    """
    if not isinstance(backbone, HasStock):
        return
    path = result_path(backbone, identity)
    findings = read_result(path)
    if findings is None:
        findings = list(examine(backbone, BRIEF, _FRAMES, new=1))
        write_result(path, findings)
    wrong = next((found for found in findings if not found.ok), None)
    if wrong is not None:
        raise ModelError(
            f"{backbone.name} is not served rightly here: {wrong.name}: {wrong.detail}. `x2l doctor` says more; "
            "check=False (--no-check) loads it in any case"
        )


def examine(backbone: Backbone, names: tuple[str, ...], frames: int, new: int = 8) -> Iterator[CheckResult]:
    """Run checks of `videox2l.conformance` one by one, and yield each finding as it comes.

    Raises ModelError when memory runs out: that says nothing about the model.
    """
    subject = TestCase(backbone, made_up_clip(frames), new=new)
    for name in names:
        try:
            yield EXACTNESS[name](subject)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(f"the check '{name}' does not fit into memory: {error}".splitlines()[0]) from error
        except Exception as error:  # what breaks an adapter under test is not known in advance
            yield CheckResult(name, False, f"{type(error).__name__}: {error}".splitlines()[0])


def votes_once(backbone: Any, identity: Mapping[str, str], *, find: bool = False) -> KeyHeads | None:
    """Give a backbone the heads that say what a question is about, as they were found once; None if they were not.

    `find`: find them now where that was not done yet (seconds on a GPU, minutes for a large model on a CPU).
    """
    path = result_path(backbone, identity).with_suffix(".heads.json")
    found: KeyHeads | None = None
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
        votes = tuple((int(layer), str(kind)) for layer, kind in kept["votes"])
        found = KeyHeads(votes, float(kept["recall"]), float(kept["chance"]))
    except (OSError, ValueError, KeyError, TypeError):
        if find:
            found = find_votes(backbone)
            _write(path, asdict(found))
    if found is not None and found.useful:
        backbone.index_votes = found.votes
    return found


def result_path(backbone: Backbone, identity: Mapping[str, str]) -> Path:
    """Return where the verdict about a model is kept."""
    facts = {
        "identity": without_source(identity),
        "dtype": str(backbone.shape.dtype),
        "device": backbone.device.type,
        "versions": [transformers.__version__, torch.__version__, __version__],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "verdicts" / f"{key}.json"


def read_result(path: Path) -> list[CheckResult] | None:
    """Return the findings of a verdict, None if there is none that can be read."""
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
        return [CheckResult(str(found["name"]), bool(found["ok"]), str(found["detail"])) for found in kept["findings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_result(path: Path, findings: list[CheckResult]) -> None:
    """Keep findings. A cache that cannot be written only means that the next load checks again."""
    _write(path, {"findings": [asdict(found) for found in findings]})


def _write(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
