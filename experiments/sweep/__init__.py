"""Sweeps: many runs planned from a few values, done on any machines, kept in one folder."""
