"""The method of Shen et al. (NeurIPS 2024) as pure functions: no slots, no devices, no requests."""
