"""Examples in docstrings as code: a paragraph that is a Python program, and no prose, is indented for Markdown."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Called by mkdocstrings for every object it has read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if getattr(obj, "docstring", None) and not obj.is_alias:
            obj.docstring.value = "\n\n".join(map(shown, obj.docstring.value.split("\n\n")))


def shown(paragraph: str) -> str:
    if not is_program(paragraph):
        return paragraph
    return "\n".join(f"    {line}" for line in paragraph.splitlines())


def is_program(paragraph: str) -> bool:
    """Whether it parses and does something; a sentence hardly ever does."""
    if paragraph.startswith((" ", "#")):
        return False
    try:
        body = ast.parse(paragraph).body
    except (SyntaxError, ValueError):
        return False
    doing = (ast.Assign, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Import, ast.ImportFrom, ast.With)
    return any(
        isinstance(one, doing) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)) for one in body
    )
