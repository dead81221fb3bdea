"""From a typed graph to a program of fused steps."""
