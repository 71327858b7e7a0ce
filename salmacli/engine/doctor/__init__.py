"""What would stop a training, a prediction or an evaluation, told in seconds and before it begins."""
