"""Training: states, pure steps, one loop for every stage, checkpoints, metric writers."""
