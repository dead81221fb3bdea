"""What a bench compares with: each runtime as its own users call it. Imported in worker processes only.

The only files outside `build.importers`, `kernels` and `engines.cuda` that may import torch.
"""
