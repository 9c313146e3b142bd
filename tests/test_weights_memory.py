"""What a checkpoint needs, from its headers; and what is said when there is not enough."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envtune_agents.cli import app
from envtune_agents.errors import WeightsError
from envtune_agents.testing import tiny_qwen
from envtune_agents.weights import context_length, load, load_weights, memory_report

torch = pytest.importorskip("torch")
half = pytest.importorskip("envtune_agents.weights.half")
packed = pytest.importorskip("envtune_agents.weights.packed")


def test_the_report_agrees_with_what_is_loaded(folder: Path) -> None:
    report = memory_report(folder, context=100, conversations=3)
    needs = {need.precision: need for need in report.needs}
    for precision in ("bf16", "fp16"):
        model = load_weights(folder, precision, device_map="cpu").model
        loaded = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}
        assert needs[precision].weights == sum(loaded.values())
        assert report.parameters == sum(tensor.numel() for tensor in set(model.parameters()))
        cache = model(torch.zeros(1, 7, dtype=torch.long), use_cache=True).past_key_values
        read = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert needs[precision].cache_per_token == read // 7
        assert needs[precision].total == needs[precision].weights + 300 * needs[precision].cache_per_token


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_quantised_weights_take_what_the_report_says(folder: Path, precision: str) -> None:
    pytest.importorskip("bitsandbytes")
    need = next(need for need in memory_report(folder).needs if need.precision == precision)
    model = load_weights(folder, precision, device_map="cpu").model
    packed = sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in model.parameters()}.values())
    dense = 4 if next(model.parameters()).dtype == torch.float32 else 2
    if dense == 2:
        assert need.weights == pytest.approx(packed, rel=0.1)
    assert need.weights < next(need.weights for need in memory_report(folder).needs if need.precision == "bf16")


def test_the_context_is_the_checkpoints_own_unless_said_otherwise(folder: Path) -> None:
    assert memory_report(folder).context == memory_report(folder).native_context == context_length(str(folder)) == 2048
    with pytest.raises(WeightsError, match="at most 2048"):
        memory_report(folder, context=4096)


def gguf(path: Path) -> Path:
    """The header of a GGUF file: three sizes, a vocabulary, one tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    fields = [text("general.architecture") + struct.pack("<I", 8) + text("qwen3")]
    sizes = {"context_length": 512, "block_count": 2, "embedding_length": 64, "attention.head_count": 4}
    fields += [number(f"qwen3.{key}", value) for key, value in {**sizes, "attention.head_count_kv": 2}.items()]
    words = b"".join(text(word) for word in ("a", "bc"))
    fields.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + words)
    fields.append(text("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 1.5))
    tensor = text("blk.0.ffn_up.weight") + struct.pack("<IQQIQ", 2, 64, 100, 0, 0)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, len(fields)) + b"".join(fields) + tensor)
    return path


def test_a_gguf_header_is_read_without_its_library(tmp_path: Path) -> None:
    report = memory_report(gguf(tmp_path / "a.gguf"))
    assert (report.parameters, report.context) == (6400, 512)
    assert [need.precision for need in report.needs] == ["fp32", "bf16", "fp16", "w16a32"]
    assert report.needs[0].cache_per_token == 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"GGUF\x01\0\0\0" + b"\0" * 16])
def test_a_broken_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(WeightsError):
        memory_report(tmp_path / "a.gguf")
    assert context_length(str(tmp_path / "a.gguf")) is None


def test_what_is_not_here_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not on this disk"):
        memory_report("nobody/nothing")
    with pytest.raises(WeightsError, match="not on this disk"):
        memory_report(tmp_path / "nothing")


def test_a_hub_id_in_the_local_cache_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = tmp_path / "models--some--model" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "abc").symlink_to(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert memory_report("some/model").parameters == memory_report(folder).parameters


def test_the_command_prints_the_report(folder: Path) -> None:
    done = CliRunner().invoke(app, ["memory", str(folder), "--context", "100", "--conversations", "2", "--json"])
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["needs"][0]["total"] == memory_report(folder, context=100, conversations=2).needs[0].total
    table = CliRunner().invoke(app, ["memory", str(folder)]).stdout
    assert all(word in table for word in ("fp32", "4bit", "cache"))


@pytest.mark.parametrize("precision", ["fp32", "auto", "w16a32"])
def test_too_little_memory_names_the_knobs(folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_room", lambda *args: 1000)
    with pytest.raises(WeightsError, match=r"not enough memory.*precision='8bit' or '4bit'.*device_map.*max_context"):
        load_weights(folder, precision, device_map="cpu")


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_gguf_file_that_cannot_fit_is_refused_before_it_is_read(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf(tmp_path / "a.gguf")
    monkeypatch.setattr(load, "_room", lambda *args: 1000)
    monkeypatch.setattr(load, "_load_tokenizer", lambda source: None)
    monkeypatch.setattr(load, "_load_config", lambda source: None)
    with pytest.raises(WeightsError, match=r"not enough memory.*'w16a32', or a file with fewer.*max_context"):
        load_weights(file, precision, device_map="cpu")


@pytest.mark.skipif(not half.available(), reason="torch was built without FBGEMM")
@pytest.mark.skipif(not packed.can_pack_full(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("precision", "number_bytes"), [("fp32", 4), ("w16a32", 2)])
def test_the_report_of_packed_weights_counts_what_they_take(
    folder: Path, tmp_path: Path, precision: str, number_bytes: int, tied: bool
) -> None:
    if not tied:
        weights = load_weights(folder, "fp32", device_map="cpu")
        weights.model.config.tie_word_embeddings = False
        weights.model.lm_head.weight = torch.nn.Parameter(weights.model.lm_head.weight.clone())
        weights.model.save_pretrained(tmp_path)
        weights.tokenizer.save_pretrained(tmp_path)
        folder = tmp_path
    need = next(need for need in memory_report(folder).needs if need.precision == precision)
    model = load_weights(folder, precision, device_map="cpu", packed=True).model
    layers = [layer for layer in model.modules() if isinstance(layer, packed.PackedLinear)]
    own = sum(number_bytes * layer.in_features * layer.out_features for layer in layers)
    assert need.weights == own + sum(parameter.nbytes for parameter in model.parameters())
    cache = model(torch.zeros(1, 7, dtype=torch.long), use_cache=True).past_key_values
    assert need.cache_per_token == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 7


@pytest.mark.parametrize("header", ["", "[]", '{"a": 1}'])
def test_a_damaged_safetensors_file_is_said(tmp_path: Path, header: str) -> None:
    damaged = struct.pack("<Q", len(header)) + header.encode()
    (tiny_qwen(tmp_path) / "model.safetensors").write_bytes(damaged)
    with pytest.raises(WeightsError, match="damaged"):
        memory_report(str(tmp_path))


def test_a_safetensors_file_that_was_cut_off_is_said(tmp_path: Path) -> None:
    file = tiny_qwen(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsError, match="damaged"):
        memory_report(str(tmp_path))
