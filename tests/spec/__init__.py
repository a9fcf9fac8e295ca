"""The executable specification of the float32 contract, version 1: numpy only, the definition every path is compared with."""
