"""What keeps the house in order: names, sizes of functions, and few modules at the root."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import videox2l

SRC = Path(videox2l.__file__).parent
FILES = sorted(SRC.rglob("*.py"))


def _trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(SRC)): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path, tree in _trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_few_modules_at_the_root() -> None:
    assert len([path for path in SRC.glob("*.py") if path.name != "__init__.py"]) <= 8


def test_functions_can_be_read_aloud() -> None:
    long, wide = [], []
    for path, tree in _trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
            lines = (node.end_lineno or 0) - node.lineno + 1
            documented = ast.get_docstring(node, clean=False)
            if lines - (documented or "").count("\n") > 80:
                long.append(f"{path}: {node.name} has {lines} lines")
            is_command = path.startswith("cli/") or path == "lmms/model.py"  # their options are their interface
            if count > 8 and not is_command:
                wide.append(f"{path}: {node.name} has {count} parameters")
    assert (long, wide) == ([], [])
