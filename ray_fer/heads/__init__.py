"""Small heads on kept embeddings: arrays in, arrays and small networks out, without pictures and without Ray."""

from __future__ import annotations
