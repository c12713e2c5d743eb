"""GGUF files: their contents, and the tokenizers that they describe."""
