"""The runner for GGUF files, on llama.cpp: the file's own blocks are computed with, and nothing is expanded."""
