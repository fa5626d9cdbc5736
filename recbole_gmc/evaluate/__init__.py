"""Ranked lists to metrics and result files."""
