"""A run of the command line: planned and checked, then carried out over all domains at once or once a domain."""
