"""The decoders that are compared: this server's, plain ones, other servers."""
