"""Between the event loop and the engine's thread: admission, the bridge itself, output streams and shared runs."""
