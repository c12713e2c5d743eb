"""How good the drafts are: metrics, decoders, reports, tuning."""
