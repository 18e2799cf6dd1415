"""What several test modules share: runs, records with a known truth, small models."""
