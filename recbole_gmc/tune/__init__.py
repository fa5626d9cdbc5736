"""Search over settings: spaces from property files, trials chosen by validation, the winner run once."""
