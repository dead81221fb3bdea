"""Kernels in CUDA C++ for Hopper (sm_90a), compiled at run time; every one has a general counterpart in Triton."""
