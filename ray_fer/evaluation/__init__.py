"""What a model is worth, in numbers: metrics over arrays."""
