"""One trial: engine, optimizer, evaluation, record."""
