"""Losses of the pre-training methods, one file a paper; pure functions of tensors."""
