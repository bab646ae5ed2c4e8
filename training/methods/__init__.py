"""Pre-training methods, one file a paper; each is a `training.loop.Method`."""
