"""What a model is worth: metrics over arrays, the pictures that show them, and the page that carries both."""
