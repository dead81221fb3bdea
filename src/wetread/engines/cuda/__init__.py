"""Engines on NVIDIA's GPUs by our own fused kernels: a graph is lowered to a plan of steps in one arena."""
