"""The launchers of csrc/cuda, run without a GPU: by the SIMT emulator, or by interpreting what nvcc made of the kernels."""
