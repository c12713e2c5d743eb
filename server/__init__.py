"""HTTP in, drafts out: the service and the command line."""
