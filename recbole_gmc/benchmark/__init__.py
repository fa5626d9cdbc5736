"""Models side by side: one protocol, one table."""
