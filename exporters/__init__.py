"""Exporters: one captured program in, one file of one format out."""
