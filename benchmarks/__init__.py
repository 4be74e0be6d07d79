"""What is measured, and how: one folder or file per question, results as Markdown and JSON in ``results/``."""
