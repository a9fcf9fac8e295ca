"""PTX, the assembly that nvcc and Triton produce: a parser, a lint for the numerics contract, and an interpreter."""
