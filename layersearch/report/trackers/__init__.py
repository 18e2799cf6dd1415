"""Trackers: a run's trials, their losses and the frontier in TensorBoard, MLflow, Weights & Biases, or CSV files."""
