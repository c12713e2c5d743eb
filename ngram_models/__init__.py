"""N-gram models over token ids: KenLM scorers, their manifests, how they are built and found."""
