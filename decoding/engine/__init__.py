"""The engine: requests in, one forward pass per step, drafts out."""
