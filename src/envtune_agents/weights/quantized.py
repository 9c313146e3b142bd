"""Weights in 8 or 4 bit: what transformers is told about them, and a message of every step that nobody needs."""

from __future__ import annotations

import logging
from typing import Any

from envtune_agents.errors import WeightsError, require
from envtune_agents.weights.source import LOCAL_INSTALL, WeightsSource

QUANT_INSTALL = "pip install 'envtune-agents[quant]'"


def quantized_config(source: WeightsSource, precision: str, compute: Any) -> Any:
    """transformers' configuration of "8bit" or "4bit" (nf4, double quantisation) weights.

    `compute`: the dtype that 4-bit weights are unpacked to. Raises `WeightsError` for a GGUF file.
    """
    if source.gguf_file:
        raise WeightsError(
            f"'{source.gguf_file}' is quantised already; precision '{precision}' needs a safetensors folder. "
            "Use 'auto', 'fp32', 'bf16' or 'fp16' with a GGUF file."
        )
    if source.adapter:
        raise WeightsError(
            f"'{source.adapter}' is a LoRA adapter, and weights in precision '{precision}' cannot take it in. Load its "
            "base model in that precision with adapters={name: folder}, or use 'auto', 'fp32', 'bf16' or 'fp16'."
        )
    transformers = require("transformers", feature="Loading weights", install=LOCAL_INSTALL)
    require("bitsandbytes", feature=f"Precision '{precision}'", install=QUANT_INSTALL)
    if precision == "8bit":
        _mute_casts()
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _mute_casts() -> None:
    """Drop the one warning with which bitsandbytes 0.50 says, for every layer of every step, how 8 bit works."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more_than_casts)


def _says_more_than_casts(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")
