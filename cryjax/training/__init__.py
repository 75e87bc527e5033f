"""Training: pure steps and losses; around them optimizers, parallelism, checkpoints, the loop."""
