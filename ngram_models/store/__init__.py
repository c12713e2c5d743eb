"""N-gram models on disk: their manifests, finding and loading them, inspecting them."""
