"""A checkpoint (folder, hub id or GGUF file) -> model and tokenizer at a chosen precision.

Comes in: where the weights are, and how precise they shall be. Goes out: `Weights`. It runs nothing: decoding is the
engine's job. Pickled weights and code from a checkpoint are never loaded.
"""

from envtune_agents.weights.header import checkpoint_files, context_length
from envtune_agents.weights.load import PRECISIONS, Precision, Weights, load_tokenizer, load_weights, tokenizer_only
from envtune_agents.weights.memory import MemoryNeed, MemoryReport, memory_report

__all__ = [
    "PRECISIONS",
    "MemoryNeed",
    "MemoryReport",
    "Precision",
    "Weights",
    "checkpoint_files",
    "context_length",
    "load_tokenizer",
    "load_weights",
    "memory_report",
    "tokenizer_only",
]
