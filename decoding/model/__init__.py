"""The model runner and its parts: KV cache, forward passes, linear layers and their weight formats."""
