"""Evaluation of drafts: cases, decoders, measures, reports and tuning."""
