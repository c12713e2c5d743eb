"""N-gram models on disk: manifests, where models are found, what is in them."""
