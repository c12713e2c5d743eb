"""Decoders to compare: this server's, plain ones, and other servers."""
