"""A checkpoint (folder, hub id or GGUF file) -> model and tokenizer at a chosen precision.

Comes in: where the weights are, and how precise they shall be. Goes out: `Weights`. It runs nothing: decoding is the
engine's job. Pickled weights and code from a checkpoint are never loaded.
"""

from envtune_agents.weights.load import PRECISIONS, Precision, Weights, load_weights

__all__ = ["PRECISIONS", "Precision", "Weights", "load_weights"]
