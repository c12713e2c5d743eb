"""The model runner: forward passes, the KV cache, quantised linear layers."""
