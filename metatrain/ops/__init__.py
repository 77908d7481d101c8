"""Kernels for convolutional networks on a CPU, each beside the plain PyTorch that it equals."""
