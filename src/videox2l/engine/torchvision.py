"""A torchvision that cannot be imported breaks the import of every video LLM in transformers.

transformers looks whether the package is there, not whether it works (a CUDA build of torchvision beside a CPU build
of torch is enough to fail). Nothing here needs torchvision, so a broken one is hidden from transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings


def hide_broken_torchvision() -> None:
    """Make a broken torchvision look absent. Does nothing where it works, is absent, or transformers came first."""
    if "transformers" in sys.modules or "torchvision" in sys.modules:
        return
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # find_spec and import now see nothing
        warnings.warn(f"the installed torchvision is broken and is ignored: {error}", RuntimeWarning, stacklevel=3)
