"""Models by name: those that ship with the package, a local directory, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from videox2l.backbones import loading
from videox2l.backbones.checkpoint import Checkpoint, locate
from videox2l.demo.xl import load_demo_xl
from videox2l.engine.backbone import Backbone
from videox2l.options import LoadOptions

if TYPE_CHECKING:
    from videox2l.backbones.transformers_backbone import TransformersBackbone

FOLDER = Path(__file__).parent / "model"
SHIPPED = {
    "demo": FOLDER,
    "demo-dense": FOLDER.with_name("model_dense"),
    "demo-boards": FOLDER.with_name("model_boards"),
    "demo-xl": FOLDER,
}
"""Name -> folder of the checkpoint."""


def checkpoint_of(name: str, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint that a name means. Raises ModelError where there is none."""
    return Checkpoint(str(SHIPPED[name])) if name in SHIPPED else locate(name, revision)


def load_backbone(name: str, options: LoadOptions) -> tuple[Backbone, Checkpoint]:
    """Load a model and return it with its checkpoint. Raises ModelError, SettingsError."""
    checkpoint = checkpoint_of(name, options.revision)
    backbone = loading.from_pretrained(checkpoint, options)
    if name == "demo-xl":  # its vision tower is the demo model's
        backbone = load_demo_xl(cast("TransformersBackbone", backbone), backbone.shape.dtype)
    return backbone, checkpoint
