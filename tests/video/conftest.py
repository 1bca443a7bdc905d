"""Each clip is encoded once per test process."""

from __future__ import annotations

import pytest
from clips import MAKE, MEDIA


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Path of a clip by name: a sample file, or a generated one."""
    folder = tmp_path_factory.mktemp("clips")

    def find(name):
        if (MEDIA / name).exists():
            return MEDIA / name
        path = folder / name
        return path if path.exists() else MAKE[name](folder)

    return find
