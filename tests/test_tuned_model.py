"""The adapter that comes with the package is found by its name. What it does is in `long_tuned_model`."""

from __future__ import annotations

import pytest

from envtune_agents.weights.source import TUNED_ADAPTER, TUNED_MODEL, find_weights


@pytest.mark.model
def test_the_tuned_model_is_found_by_its_name() -> None:
    source = find_weights(TUNED_MODEL)
    assert (source.name, source.adapter) == (TUNED_MODEL, TUNED_ADAPTER)
    assert source.gguf_file is not None
    size = sum(file.stat().st_size for file in TUNED_ADAPTER.iterdir())
    assert size < 6 * 1024 * 1024
    card = (TUNED_ADAPTER / "README.md").read_text()
    assert f'ChatTransformers(model="{TUNED_MODEL}")' in card
