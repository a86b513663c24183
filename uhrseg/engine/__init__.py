"""Where torch, dask and geo meet: prediction, training, losses, scores."""
