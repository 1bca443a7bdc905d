"""The model `videox2l` of lmms-eval: each video is ingested once, although lmms-eval asks question by question.

lmms-eval finds it by the entry point in the group `lmms_eval.models`; it is not a dependency of this package.
"""

from __future__ import annotations

from typing import Any


def manifests() -> Any:
    """Return what lmms-eval registers: the name `videox2l` and where its class is. Called by lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="videox2l", simple_class_path="videox2l.lmms.model.VideoX2LModel")
