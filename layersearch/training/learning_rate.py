"""The learning rate of each optimizer step."""

from layersearch.config.training import TrainingConfig


def learning_rate_factor(step: int, training: TrainingConfig) -> float:
    """Return the share of the peak learning rate at a step, from 0: linear warm-up, then cosine decay."""
    # transformers' schedule warms up from another first step and takes its cosine in float64: other losses.
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    import torch

    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    cosine = 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * min(1.0, done)))))
    return training.final_lr_ratio + (1.0 - training.final_lr_ratio) * cosine
