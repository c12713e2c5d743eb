"""Replicas on Ray Serve (`superdraft serve --ray-replicas`)."""
