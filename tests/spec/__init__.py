"""The executable specification of the float32 contract, version 1, in numpy: the definition of every bit."""
