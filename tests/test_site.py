"""What the documentation promises beside its programs: real error messages, links that lead somewhere, no network."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PROGRAM = re.compile(r"```python\n(.*?)```", re.S)


def literals() -> str:
    """Every string in the sources, with \\0 where an f-string puts a value."""
    found = []
    places = [
        (ROOT / "src").rglob("*.py"),
        (ROOT / "integrations").glob("*/src/**/*.py"),
        (ROOT / "examples").rglob("*.py"),
    ]
    for path in chain(*places):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return [line.removeprefix("### `").removesuffix("`") for line in page.splitlines() if line.startswith("### `")]


def test_every_message_that_is_explained_exists() -> None:
    sources = literals()
    assert len(messages()) > 25
    missing = [text for text in messages() for part in text.split("…") if part.strip(" .,:'()") and part not in sources]
    assert missing == []


def test_every_page_of_the_folder_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [str(page) for page in PAGES if str(page.relative_to(ROOT / "docs")) not in navigation]
    assert missing == []


def test_links_of_every_page_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_nothing_is_loaded_from_another_host() -> None:
    for page in PAGES:
        assert not re.search(r"<(script|link|img|iframe)[^>]+https?:", page.read_text()), page
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_program_of_a_page_compiles(page: Path) -> None:
    for program in PROGRAM.findall(page.read_text()):
        compile(program, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
