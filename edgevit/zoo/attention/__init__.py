"""Attention blocks (token mixers), one a file."""
