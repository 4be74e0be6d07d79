"""What is learnt: backbone, temporal encoder, artifacts on disk, inference engines."""
