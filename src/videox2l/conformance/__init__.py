"""Does an adapter serve its model exactly? Checks against the stock model's own forward pass, on a made-up clip.

For everyone who adds a family, in one line of a test:

    assert_conforms(MyBackbone(model, tokenizer, video_config))

The oracle is always the transformers model itself: the whole video and the whole prompt in one pass, with eager
attention, its own front end and, where those are right, its own positions. No check compares an adapter with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from videox2l.compress import COMPRESSORS
from videox2l.conformance.case import HasStock, TestCase, made_up_clip
from videox2l.conformance.checks import EXACTNESS, CheckResult, combination
from videox2l.engine.backbone import Backbone
from videox2l.select import SELECTORS


def check(
    backbone: Backbone,
    *,
    frames: int | np.ndarray = 11,
    seed: int = 0,
    only: Sequence[str] | None = None,
    matrix: bool = True,
) -> list[CheckResult]:
    """Check a backbone against its stock model and return a finding per check; nothing is raised for a failure.

    `frames`: how many frames the made-up clip has, or a clip of one's own (frames, height, width, 3) uint8. `only`:
    names out of `EXACTNESS`, by default all. `matrix`: also answer with every compressor and selector. The model should
    be in float32: in half precision the limits are a thousand times wider. The backbone must be a `HasStock`.
    """
    clip = made_up_clip(frames, seed) if isinstance(frames, int) else frames
    checks = dict(EXACTNESS) if only is None else {name: EXACTNESS[name] for name in only}
    if matrix:
        pairs = [(compressor, "attention") for compressor in COMPRESSORS]
        pairs += [(backbone.default_compressor, selector) for selector in SELECTORS if selector != "attention"]
        checks |= {f"{compressor} x {selector}": combination(compressor, selector) for compressor, selector in pairs}
    if not isinstance(backbone, HasStock):
        return [
            CheckResult("stock model", False, f"{type(backbone).__name__} has no model and stock_inputs to check with")
        ]
    subject = TestCase(backbone, clip)
    return [_run(name, one, subject) for name, one in checks.items()]


def _run(name: str, one: Callable[[TestCase], CheckResult], subject: TestCase) -> CheckResult:
    """Run one check; a check that breaks is a finding, not the end of the others."""
    try:
        return one(subject)
    except Exception as error:  # what breaks an adapter under test is not known in advance
        return CheckResult(name, False, f"{type(error).__name__}: {error}".splitlines()[0])


def assert_conforms(backbone: Backbone, **options: Any) -> None:
    """Raise AssertionError naming every check that fails: one line in a test of an adapter. Options as of `check`."""
    failed = [f"{found.name}: {found.detail}" for found in check(backbone, **options) if not found.ok]
    if failed:
        raise AssertionError(f"{getattr(backbone, 'name', backbone)} does not conform\n" + "\n".join(failed))


__all__ = ["EXACTNESS", "CheckResult", "HasStock", "assert_conforms", "check", "made_up_clip"]
