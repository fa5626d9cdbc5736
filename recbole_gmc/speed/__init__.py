"""The benchmark: this project's ways against the usual ones."""
