"""README and docs say what is true: their programs run and print what they claim.

Those that load the small real checkpoint take seconds each; `make test-long` runs them, too.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "integrations").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
PROGRAM = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
PROGRAMS = {str(page.relative_to(ROOT)): programs for page in PAGES if (programs := PROGRAM.findall(page.read_text()))}


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_programs_of_a_page_print_what_it_says(page: str) -> None:
    """Read from the top: a program may use what those before it on the page have made."""
    names = {"__name__": "page"}
    for program, output in PROGRAMS[page]:
        if "smollm2" in program and os.environ.get("ENVTUNE_EXAMPLES") != "all":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, page, "exec"), names)
        assert printed.getvalue().strip() == output.strip()


def test_the_readme_has_programs() -> None:
    assert len(PROGRAM.findall((ROOT / "README.md").read_text())) >= 2


def test_links_to_files_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
