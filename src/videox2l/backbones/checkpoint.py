"""The files of a model: a local folder, or a repository on the Hugging Face hub at one revision.

Files are fetched by huggingface_hub, into its cache. Whatever can go wrong on the way is told in one line.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, file_exists, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError

from videox2l.backbones import video_xl_loading as video_xl
from videox2l.engine.hub import offline_hint, online
from videox2l.errors import ModelError, X2LError

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files lie: `where` is a folder or a hub id, `subfolder` a folder inside ("" for none)."""

    where: str
    subfolder: str = ""
    revision: str | None = None

    @property
    def local(self) -> bool:
        """Whether it is a folder here."""
        return Path(self.where).is_dir()

    @property
    def hub(self) -> dict[str, Any]:
        """Return what transformers' loading functions are called with besides `where`. Remote code is never run."""
        offline = {} if self.local or online() else {"local_files_only": True}
        return {"revision": self.revision, "trust_remote_code": False, "subfolder": self.subfolder, **offline}

    def find(self, file: str) -> Path | None:
        """Return where a file lies on disk (fetched if need be), or None if the model has none of that name."""
        if self.local:
            path = Path(self.where, self.subfolder, file)
            return path if path.is_file() else None
        name = f"{self.subfolder}/{file}" if self.subfolder else file
        with translate_errors(self):
            if not online():
                cached = try_to_load_from_cache(self.where, name, revision=self.revision)
                return Path(cached) if isinstance(cached, str) else None
            try:
                return Path(hf_hub_download(self.where, name, revision=self.revision))
            except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
                return None  # LocalEntryNotFoundError among them: not in the cache, and no way to ask

    def json(self, file: str) -> dict[str, Any]:
        """Return the contents of a JSON file, {} if the model has none of that name."""
        path = self.find(file)
        if path is None:
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8-sig")))
        except ValueError as error:
            raise ModelError(f"{file} of '{self.where}' is no JSON object ({error}): fetch it again") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of config.json. Raises ModelError that says what the folder or repository is instead."""
        found = self.json("config.json")
        if not found:
            raise ModelError(self._no_config())
        if "model_type" not in found:
            raise ModelError(f"config.json of '{self.where}' names no model_type: it is no transformers checkpoint")
        return found

    @property
    def commit(self) -> str | None:
        """The commit of a hub repository that is used, None for a local folder."""
        path = None if self.local else self.find("config.json")
        parts = [] if path is None else list(path.parts)
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None

    @property
    def source(self) -> str | None:
        """What a memory records of a hub repository: id, subfolder and commit. None for a local folder."""
        if self.local:
            return None
        return f"{self.where}{'/' * bool(self.subfolder)}{self.subfolder}@{self.commit or self.revision or 'main'}"

    def check_weights(self) -> None:
        """Raise ModelError where there are no safetensors, or an adapter beside them that would be left out.

        Pickled weights are never read: loading them runs code.
        """
        self._check_adapter()
        if any(self._has(file) for file in _SAFE):
            self._check_pointers()
            return
        pickled = [file for file in _PICKLED if self._has(file)]
        if pickled:
            raise ModelError(
                f"'{self.where}' has its weights as pickle alone ({pickled[0]}), which is never read because it can "
                "run code: load them where you trust them and save_pretrained(..., safe_serialization=True)"
            )
        raise ModelError(f"'{self.where}' has no weights: neither {' nor '.join(_SAFE)}{self._hint()}")

    def _check_pointers(self) -> None:
        """Raise ModelError where a clone without git-lfs left pointers in place of weights."""
        for path in sorted(Path(self.where, self.subfolder).glob("*.safetensors")) if self.local else ():
            with path.open("rb") as file:
                if file.read(40).startswith(b"version https://git-lfs"):
                    raise ModelError(f"'{path}' is a git-lfs pointer, no weights: run `git lfs pull` in its folder")

    def _check_adapter(self) -> None:
        if self._has("non_lora_trainables.bin"):
            raise ModelError(_lora(self.where, self.json("adapter_config.json")))
        if not self._has("adapter_config.json") or (any(map(self._has, _SAFE)) and find_spec("peft") is not None):
            return  # with peft, transformers puts the adapter on the weights beside it
        hint = "" if find_spec("peft") else "; or install peft, where whole weights lie beside the adapter"
        raise ModelError(_lora(self.where, self.json("adapter_config.json")) + hint)

    def check_tokenizer(self) -> None:
        """Raise ModelError where there is no tokenizer at all."""
        if not any(self._has(file) for file in _TOKENIZER):
            raise ModelError(
                f"'{self.where}' has no tokenizer (none of {', '.join(_TOKENIZER[:3])}): copy it from the model that "
                f"this one was made from{self._hint()}"
            )

    def _has(self, file: str) -> bool:
        if self.local:
            return self.find(file) is not None
        name = f"{self.subfolder}/{file}" if self.subfolder else file
        if isinstance(try_to_load_from_cache(self.where, name, revision=self.revision), str):
            return True
        with translate_errors(self):
            return online() and bool(file_exists(self.where, name, revision=self.revision))

    def _no_config(self) -> str:
        if not self.local:
            if not online():
                return f"'{self.where}' is not in the cache {constants.HF_HUB_CACHE}{self._hint()}"
            if Path(self.where).is_file():
                return f"'{self.where}' is a file: give the folder that holds it and its config.json"
            if self.find("adapter_config.json") is not None:
                return _lora(self.where, self.json("adapter_config.json"))
            return (
                f"'{self.where}' has no config.json, neither on the hub nor in the cache {constants.HF_HUB_CACHE}: "
                "check the name and the network"
            )
        if self.find("adapter_config.json") is not None:
            return _lora(self.where, self.json("adapter_config.json"))
        folder = Path(self.where, self.subfolder)
        if any(folder.glob("*.gguf")):
            return f"'{self.where}' holds GGUF files, which are not supported: use the transformers checkpoint"
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        several = f"; folders in it have one: {', '.join(inner)}" if inner else ""
        return f"'{self.where}' has no config.json{several}: give the folder that save_pretrained wrote"

    def _hint(self) -> str:
        return "" if self.local else offline_hint(self.where)


def locate(name: str, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint that a name means: a local folder, or a hub id.

    A third part of a hub id is a subfolder ("owner/name/folder"); a local folder without a config.json may have one
    subfolder that has it. Raises ModelError for a path at which nothing is.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        inner = [] if (path / "config.json").exists() else [sub.parent for sub in path.glob("*/config.json")]
        return Checkpoint(str(inner[0]) if len(inner) == 1 else str(path), revision=None)
    parts = name.split("/", 2)
    if path.is_absolute() or parts[0] in (".", "..", "~") or "\\" in name or name.endswith("/"):
        what = "is a file: give the folder that holds it" if path.is_file() else "is no folder"
        raise ModelError(f"'{name}' {what}")
    if len(parts) == 3:
        return Checkpoint("/".join(parts[:2]), parts[2], revision)
    return Checkpoint(name, video_xl.SUBFOLDERS.get(name, ""), revision)


@contextlib.contextmanager
def translate_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what fetching and reading files can raise into a ModelError of one line."""
    name = checkpoint.where
    try:
        yield
    except X2LError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"'{name}' is gated: accept its licence at https://huggingface.co/{name}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"'{name}' is neither a folder here nor a repository on the hub that you may read: check the name, and "
            "`hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"'{name}' has no revision '{checkpoint.revision}': use a branch, a tag or a commit"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(f"'{name}' is neither a folder here nor a hub id such as owner/name") from error
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise ModelError(
                f"the disk is full while '{name}' is fetched into {constants.HF_HUB_CACHE}: free some space, or set "
                "HF_HOME to a folder on a larger disk"
            ) from error
        raise ModelError(f"cannot load the model '{name}': {first_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"a safetensors file of '{name}' is damaged ({first_line(error)}): fetch it again") from error
    except (ValueError, RuntimeError, ImportError) as error:  # such as a quantization package that is not there
        raise ModelError(f"cannot load the model '{name}': {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _lora(name: str, adapter: dict[str, Any]) -> str:
    base = adapter.get("base_model_name_or_path") or "its base model"
    return (
        f"'{name}' is a LoRA adapter of {base}, no whole model: merge it (peft's merge_and_unload) into {base}, "
        "save_pretrained the result with its processor, and use that folder"
    )
