"""Tuning: which format, rewrites and settings are fastest on the device at hand."""
