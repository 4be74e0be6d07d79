"""Video: frames, clips, their features, the temporal encoder, smoothing and prediction."""
