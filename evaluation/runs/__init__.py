"""The evaluations themselves, one module per `superdraft eval` command."""
