"""LoRA adapters by name: on a folder, on a GGUF file, wrong ones, and several in one model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envtune_agents.chat_model import ChatTransformers, release_engines
from envtune_agents.errors import WeightsError
from envtune_agents.testing import random_adapter, tiny_qwen

pytest.importorskip("torch")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny_qwen(tmp_path_factory.mktemp("tiny"))
    release_engines()


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, str]:
    scales = {"loud": 2.0, "other": 2.0, "mute": 0.0}
    return {
        name: str(random_adapter(folder.parent / name, folder, seed=seed, scale=scale))
        for seed, (name, scale) in enumerate(scales.items())
    }


def chat(folder: Path, adapters: dict[str, str] | None, **options: Any) -> ChatTransformers:
    return ChatTransformers(
        **{"model": folder, "precision": "fp32", "temperature": 0, "max_tokens": 24, "adapters": adapters, **options}
    )


def test_a_call_chooses_an_adapter_and_the_next_does_not(folder: Path, adapters: dict[str, str]) -> None:
    model = chat(folder, adapters)
    plain = model.invoke("Hello").content
    said = {name: model.invoke("Hello", model=name) for name in adapters}
    assert len({plain, said["loud"].content, said["other"].content}) == 3
    assert said["mute"].content == plain
    assert said["loud"].response_metadata["model_name"] == "loud"
    assert model.invoke("Hello").content == plain
    assert model.invoke("Hello", model=folder.name).content == plain
    assert model.invoke("Hello", model=str(folder)).response_metadata["model_name"] == str(folder)


async def test_every_way_of_asking_takes_the_name(folder: Path, adapters: dict[str, str]) -> None:
    model = chat(folder, adapters)
    wanted = model.invoke("Hello", model="loud").content
    assert (await model.ainvoke("Hello", model="loud")).content == wanted
    assert "".join(str(chunk.content) for chunk in model.stream("Hello", model="loud")) == wanted
    assert "".join([str(chunk.content) async for chunk in model.astream("Hello", model="loud")]) == wanted
    assert model.bind(model="loud").invoke("Hello").content == wanted


def test_prefixes_are_not_shared_between_adapters(folder: Path, adapters: dict[str, str]) -> None:
    """What one adapter read must not be taken for another's."""
    question = "What is the weather like in Paris and in Berlin today? " * 4
    fresh = chat(folder, adapters, cache_bytes=0)
    warm = chat(folder, adapters)
    for name in (folder.name, "loud", folder.name, "other"):
        assert warm.invoke(question, model=name).content == fresh.invoke(question, model=name).content


def test_names_belong_to_a_chat_model_and_not_to_the_weights(folder: Path, adapters: dict[str, str]) -> None:
    one, two = (chat(folder, {"mine": adapters[name]}) for name in ("loud", "other"))
    assert one.engine is two.engine
    assert one.invoke("Hello", model="mine").content != two.invoke("Hello", model="mine").content


def test_an_adapter_can_come_later(folder: Path, adapters: dict[str, str]) -> None:
    model = chat(folder, None)
    with pytest.raises(WeightsError, match=r"Unknown model 'late'\. Known: "):
        model.invoke("Hello", model="late")
    before = model._identifying_params
    model.load_adapter("late", adapters["loud"])
    assert model.invoke("Hello", model="late").content == chat(folder, adapters).invoke("Hello", model="loud").content
    assert model._identifying_params != before


def test_a_folder_without_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors missing.*pickled adapters are refused"):
        chat(folder, {"empty": str(tmp_path)}).invoke("Hello", model="empty")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match="pickled"):
        chat(folder, {"empty": str(tmp_path)}).invoke("Hello", model="empty")


def test_an_adapter_of_another_model_is_refused_and_the_engine_lives_on(folder: Path, tmp_path: Path) -> None:
    import safetensors.torch

    alien = random_adapter(tmp_path, folder)
    tensors = safetensors.torch.load_file(alien / "adapter_model.safetensors")
    wide = {name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(wide, alien / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="does not fit this model"):
        chat(folder, {"alien": str(alien)}).invoke("Hello", model="alien")
    assert chat(folder, None).invoke("Hello").content
