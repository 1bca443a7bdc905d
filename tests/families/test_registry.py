"""Which adapter serves a family, and how other packages add theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from videox2l import ModelError
from videox2l.backbones import video_xl_loading
from videox2l.backbones.registry import _OWN, adapter_for, supported


def test_every_family_of_the_package_has_an_adapter() -> None:
    assert video_xl_loading.MODEL_TYPE in _OWN
    for model_type in _OWN:
        assert callable(adapter_for(model_type))
    assert supported() == sorted(supported())


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ModelError, match=r"no adapter for model type 'bert': supported are .*qwen2_5_vl"):
        adapter_for("bert")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, as pip leaves it, that registers three families."""
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = ["my_model = my_package:make", "broken = my_package:missing", "qwen2_5_vl = my_package:make"]
    (info / "entry_points.txt").write_text("\n".join(["[videox2l.backbones]", *lines, ""]))
    (tmp_path / "my_package.py").write_text("def make(model, tokenizer, video_config, max_pixels=None): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_another_package_registers_a_family() -> None:
    assert {"my_model", "llava_onevision"} <= set(supported())
    assert adapter_for("my_model").__module__ == "my_package"
    assert adapter_for("qwen2_5_vl").__module__ == "videox2l.backbones.qwen2_vl"  # the package's own come first
    with pytest.raises(ModelError, match=r"'my_package:missing' for broken cannot be imported"):
        adapter_for("broken")
