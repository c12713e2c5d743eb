"""Superposed Decoding: the algorithm and the engine that runs it on a causal language model."""
