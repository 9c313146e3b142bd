"""Every example runs offline as a program of its own and prints what its last comment says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_prints_what_it_says(example: Path) -> None:
    text = example.read_text()
    expected = [line.removeprefix("# ") for line in text.split("# Expected output:\n")[1].splitlines()]
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == expected, done.stderr
    assert len(text.splitlines()) <= 60
