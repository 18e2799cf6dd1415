"""The Gaussian process over schedules, its acquisition function, sampler and solver."""
