"""Triton code that runs on the device. Imported only where a kernel is launched: it needs triton."""
