"""One HTML page of a run: a file that opens without a network."""
