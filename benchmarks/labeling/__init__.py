"""Labelling speed: `compare` runs the contestants, each a script of its own that labels a folder into a folder."""
