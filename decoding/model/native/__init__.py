"""Kernels in C++ for models on a CPU: quantised linear layers, attention, a whole decoder."""
