"""What a model is trained by: one file for each method, with its batches, its losses and its own numbers."""
