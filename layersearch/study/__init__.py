"""The search: plan, journal, loop, pruning, run folder."""
