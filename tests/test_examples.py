"""Every example runs offline as a program of its own and prints what its last comment says.

Those in `LONG` take half a minute or more; `make test-long` runs them, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONG = ["15_train_on_the_playground.py"]
ALL = os.environ.get("ENVTUNE_EXAMPLES") == "all"


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if ALL or path.name not in LONG], ids=lambda path: path.name
)
def test_an_example_prints_what_it_says(example: Path) -> None:
    text = example.read_text()
    expected = [line.removeprefix("# ") for line in text.split("# Expected output:\n")[1].splitlines()]
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == expected, done.stderr


def test_every_example_is_short_and_says_what_it_prints() -> None:
    assert {path.name for path in EXAMPLES} >= set(LONG)
    for example in EXAMPLES:
        text = example.read_text()
        assert len(text.splitlines()) <= 60, example.name
        assert text.count("# Expected output:\n") == 1, example.name
