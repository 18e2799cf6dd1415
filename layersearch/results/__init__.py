"""What a run's records say: types, analysis, statistics, figures."""
