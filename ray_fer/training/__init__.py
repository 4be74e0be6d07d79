"""How a model is trained: Ray Train, DeepSpeed, the loop, and the folder of a run."""
