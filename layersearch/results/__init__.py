"""Results of a run: types, analysis, statistics, figures."""
