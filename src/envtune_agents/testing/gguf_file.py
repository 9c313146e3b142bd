"""The tiny checkpoint as one GGUF file, so that what reads such files runs offline in a second.

Comes in: the folder that `tiny_qwen` wrote, with `head_dim=128`. Goes out: a file as llama.cpp's converter lays it
out, weights in fp32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envtune_agents.errors import require

INSTALL = "pip install 'envtune-agents[local]'"
_ARCHITECTURE = "qwen3"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Kinds of tokens in a GGUF file."""


def tiny_gguf(checkpoint: str | Path, file: str | Path) -> Path:
    """Writes the checkpoint that `tiny_qwen(checkpoint, head_dim=128)` made to `file`, with the same weights."""
    gguf = require("gguf", feature="tiny_gguf", install=INSTALL)
    saving = require("safetensors.numpy", feature="tiny_gguf", install=INSTALL)
    folder, path = Path(checkpoint), Path(file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, tensor in saving.load_file(folder / "model.safetensors").items():
        stem, kind = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    bpe = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kinds = {token["content"]: _CONTROL if token["special"] else _USER_DEFINED for token in bpe["added_tokens"]}
    ids = bpe["model"]["vocab"] | {token["content"]: token["id"] for token in bpe["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, _NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
