"""Ray Train + DeepSpeed: the runner, the recipes, the loop."""
