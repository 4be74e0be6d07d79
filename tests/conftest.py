"""Shared by all tests: every test that starts Ray starts its own, and never talks to a cluster of the user's."""

from __future__ import annotations

import os

os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
