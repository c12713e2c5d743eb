"""The commands of `superdraft eval`, and `superdraft tune`."""
