"""From a typed graph to a program of fused steps."""

from wetread.engines.cuda.lower.lower import lower

__all__ = ["lower"]
