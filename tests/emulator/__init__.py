"""The launchers of csrc/cuda without a GPU: in the SIMT emulator, or by interpreting what nvcc made of the kernels."""
