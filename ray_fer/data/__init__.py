"""What goes in: sources, manifests, decoding, loading, augmentation, sampling, video."""
