"""README and docs say what is true: their programs run and print what they claim."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "integrations").glob("*/README.md")),
]
PROGRAM = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
PROGRAMS = [
    pytest.param(program, output, id=f"{page.relative_to(ROOT)}-{index}")
    for page in PAGES
    for index, (program, output) in enumerate(PROGRAM.findall(page.read_text()))
]


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_prints_what_the_page_says(program: str, output: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "page", "exec"), {"__name__": "page"})
    assert printed.getvalue().strip() == output.strip()


def test_the_readme_has_programs() -> None:
    assert len(PROGRAM.findall((ROOT / "README.md").read_text())) >= 2


def test_links_to_files_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
