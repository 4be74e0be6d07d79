"""From buckets to pseudo-labels: the Ray Data graph, the predictions table, selection."""
