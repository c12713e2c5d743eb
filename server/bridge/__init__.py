"""The bridge between the event loop and the engine's thread."""
