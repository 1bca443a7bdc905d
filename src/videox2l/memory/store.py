"""A memory as one file: safetensors whose header carries a JSON manifest.

Readable without this package: `safetensors.safe_open(path, "pt").metadata()["manifest"]` is the JSON; tensors are
`prefix.{keys,values}`, `chunk.{i}.positions`, `chunk.{i}.{ratio}.{keys,values,index[,positions]}` and, where finer
levels are made only when they are wanted, `chunk.{i}.visual`. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videox2l.backbones.base import KVShape, VisualTokens
from videox2l.errors import MemoryFileError
from videox2l.memory.levels import Chunk, LevelKV
from videox2l.memory.memory import Memory

FORMAT = "videox2l-memory"
VERSION = 1


def is_memory(path: Path) -> bool:
    """Return whether `path` looks like a saved memory rather than a video: its header names the format."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            size = int.from_bytes(head, "little")
            return len(head) == 8 and size < 1 << 30 and FORMAT.encode() in file.read(min(size, 1 << 27))
    except OSError:
        return False


def check_target(path: Path) -> None:
    """Raise MemoryFileError where a memory cannot be written: no folder, no permission, or a folder in its place."""
    if not path.parent.is_dir():
        raise MemoryFileError(f"cannot save to '{path}': the folder '{path.parent}' does not exist")
    if path.is_dir():
        raise MemoryFileError(f"cannot save to '{path}': it is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise MemoryFileError(f"cannot save to '{path}': no permission to write in '{path.parent}'")


def save(memory: Memory, path: Path) -> None:
    """Write `memory` to `path`: to a temporary file beside it, flushed to disk, then renamed.

    Raises MemoryFileError naming the path and the cause; an older file at `path` is untouched then.
    """
    tensors, manifest = _pack(memory)
    manifest["sha256"] = _digest(tensors)
    check_target(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "manifest": json.dumps(manifest)})
            os.chmod(temporary, 0o600)  # KVs are derived from a possibly private video
            _flush(Path(temporary))
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"cannot save to '{path}': {error}") from error


def load(path: Path) -> Memory:
    """Read a memory. Raises MemoryFileError when the file is missing, damaged, or of another format."""
    if not path.is_file():
        raise MemoryFileError(f"no memory at '{path}': {'it is a folder' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise MemoryFileError(f"'{path}' is not a memory: ingest a video and save it first")
            manifest = json.loads(header["manifest"])
            if manifest.get("version") != VERSION:
                raise MemoryFileError(
                    f"'{path}' has format version {manifest.get('version')}, this release reads version {VERSION}"
                )
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise MemoryFileError(f"'{path}' is damaged or no memory: {error}") from error
    if _digest(tensors) != manifest.get("sha256"):
        raise MemoryFileError(f"'{path}' is damaged: its content does not match its hash; ingest the video again")
    try:
        return _unpack(tensors, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise MemoryFileError(f"'{path}' is damaged: its manifest lacks or garbles {error}") from error


def _pack(memory: Memory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"prefix.keys": memory.prefix[0].cpu(), "prefix.values": memory.prefix[1].cpu()}
    chunks = []
    for i, chunk in enumerate(memory.chunks):
        tensors[f"chunk.{i}.positions"] = chunk.positions.int()
        if chunk.visual is not None:
            tensors[f"chunk.{i}.visual"] = chunk.visual.embeds
        for ratio, level in chunk.kept().items():
            for name in ("keys", "values", "index", "positions"):
                if getattr(level, name) is not None:
                    tensors[f"chunk.{i}.{ratio:g}.{name}"] = getattr(level, name)
        chunks.append(
            {
                "start": chunk.start,
                "end": chunk.end,
                "frames": chunk.frames,
                "ranked": chunk.levels[min(chunk.levels)].ranked,
                "grid": None if chunk.visual is None else list(chunk.visual.grid),
                "levels": {f"{ratio:g}": len(level) for ratio, level in chunk.levels.items()},
                "stored": [f"{ratio:g}" for ratio in chunk.kept()],
            }
        )
    manifest = {
        "version": VERSION,
        "identity": memory.identity,
        "settings": memory.settings,
        "manifest": memory.manifest,
        "fingerprint": memory.fingerprint(),
        "shape": {
            "layers": memory.shape.layers,
            "heads": memory.shape.heads,
            "head_dim": memory.shape.head_dim,
            "dtype": str(memory.shape.dtype).removeprefix("torch."),
        },
        "ratios": list(memory.ratios),
        "next_position": memory.next_position,
        "reposition": memory.reposition,
        "chunks": chunks,
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, manifest


def _unpack(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Memory:
    shape = dict(manifest["shape"])
    shape["dtype"] = getattr(torch, shape["dtype"])
    memory = Memory(
        identity=dict(manifest["identity"]),
        settings=dict(manifest["settings"]),
        manifest=dict(manifest["manifest"]),
        shape=KVShape(**shape),
        ratios=tuple(float(ratio) for ratio in manifest["ratios"]),
        prefix=(tensors["prefix.keys"], tensors["prefix.values"]),
        next_position=int(manifest["next_position"]),
        reposition=str(manifest["reposition"]),
    )
    for i, entry in enumerate(manifest["chunks"]):
        levels: dict[float, LevelKV] = {}
        for name, tokens in sorted(entry["levels"].items(), key=lambda item: float(item[0])):
            if name not in entry["stored"]:
                levels[float(name)] = levels[min(levels)].first(tokens)
            else:
                keys, values, index = (tensors[f"chunk.{i}.{name}.{part}"] for part in ("keys", "values", "index"))
                positions = tensors.get(f"chunk.{i}.{name}.positions")
                levels[float(name)] = LevelKV(keys, values, index, entry["ranked"], positions)
        at = tensors[f"chunk.{i}.positions"].long()
        visual = None
        if entry.get("grid") is not None:
            t, h, w = entry["grid"]
            visual = VisualTokens(tensors[f"chunk.{i}.visual"], at, (t, h, w))
        memory.chunks.append(Chunk(entry["start"], entry["end"], entry["frames"], at, levels, visual))
    return memory


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of all tensors, in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
