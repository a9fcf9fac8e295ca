"""The functions of the native library, by the same names and signatures, in Triton; installed as a part of pytorch_ext.

Nothing is imported here: the package has to import on a machine without Triton.
"""
