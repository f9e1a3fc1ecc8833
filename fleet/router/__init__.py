"""The queue and its decisions. Stage 3: pure core in `core`, the shell in `deployment`."""
