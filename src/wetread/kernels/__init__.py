"""Kernels for 3D networks on a GPU: convolutions with fused norm statistics, norms, transposed convolutions, heads.

Tensors are torch tensors, channels last: [N, D, H, W, C] with the stride of C equal to 1. A function here
launches one kernel on the current stream, writes into tensors it is given and allocates nothing: a plan can
place every tensor in one arena and capture the launches into a CUDA graph. Device code is in `device/`, in
Triton; it runs under Triton's interpreter on the CPU too, which is how the tests compare it with float64.

    weights     packing of a layer's weights for each family of kernels; quantisation to 8 bits
    launch      one function for each kernel of a convolutional network
    candidates  tiles worth timing for a convolution; `engines.cuda.tuner` times them
"""
