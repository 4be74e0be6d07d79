"""The slow loop: a student's validation confusion matrix steers how the next round of training weighs its classes."""
