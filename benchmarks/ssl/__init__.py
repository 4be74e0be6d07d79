"""What pseudo-labels are worth: semi-supervised methods on real faces at equal compute."""
