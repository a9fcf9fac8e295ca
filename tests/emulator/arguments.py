"""The structs that csrc/cpu/*.h and csrc/numerics/updates.h declare, for float."""

from ctypes import Structure, c_bool, c_float, c_int, c_int64, c_void_p

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu")
LOSSES = ("mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
REDUCTIONS = ("none", "mean", "sum")
SAVES_INPUT = ("gelu", "gelu_tanh", "silu")


class MatrixView(Structure):
    _fields_ = [("data", c_void_p), ("row", c_int64), ("column", c_int64)]


class Product(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("M", "N", "K")),
        ("A", MatrixView),
        ("B", MatrixView),
        ("C", c_void_p),
        ("c_row", c_int64),
        ("bias", c_void_p),
        ("activation", c_int),
        ("preactivation", c_void_p),
        ("batch", c_int64),
        ("a_offset", c_void_p),
        ("b_offset", c_void_p),
        ("c_batch", c_int64),
    ]


class LinearGradient(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("columns", c_int64),
        ("grad", c_void_p),
        ("grad_row", c_int64),
        ("grad_column", c_int64),
        ("saved", c_void_p),
        ("activation", c_int),
        ("dz", c_void_p),
        ("dbias", c_void_p),
    ]


class ElementwiseLossArrays(Structure):
    _fields_ = [
        ("loss", c_int),
        ("reduction", c_int),
        ("count", c_int64),
        *((name, c_void_p) for name in ("input", "target", "weight", "pos_weight", "mean_weight")),
        ("mean_weight_count", c_int64),
        *((name, c_void_p) for name in ("grad", "value", "dinput", "dtarget")),
    ]


class Softmax(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("outer", "columns", "inner")),
        ("x", c_void_p),
        ("x_outer", c_int64),
        ("y", c_void_p),
        ("logarithm", c_bool),
    ]


class SoftmaxGradient(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("outer", "columns", "inner")),
        *((name, c_void_p) for name in ("grad", "y", "dx")),
        ("logarithm", c_bool),
    ]


class ClassificationLoss(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("outer", "classes", "inner")),
        ("input", c_void_p),
        ("input_outer", c_int64),
        ("indices", c_void_p),
        ("probabilities", c_void_p),
        ("ignore_index", c_int64),
        ("counted_rows", c_int64),
        ("weight", c_void_p),
        ("smoothed", c_bool),
        *((name, c_float) for name in ("kept", "spread", "on_target")),
        ("reduction", c_int),
        *((name, c_void_p) for name in ("grad", "loss", "dinput", "dprobabilities")),
    ]


class SgdRule(Structure):
    _fields_ = [
        *((name, c_float) for name in ("negative_lr", "momentum", "one_minus_dampening", "weight_decay")),
        ("nesterov", c_bool),
        ("maximize", c_bool),
    ]


class SgdTensor(Structure):
    _fields_ = [("count", c_int64), ("param", c_void_p), ("grad", c_void_p), ("buffer", c_void_p), ("first", c_bool)]


class AdamRule(Structure):
    _fields_ = [
        *((name, c_float) for name in ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "eps", "weight_decay")),
        ("negative_lr_weight_decay", c_float),
        *((name, c_bool) for name in ("decoupled", "amsgrad", "maximize")),
    ]


class AdamTensor(Structure):
    _fields_ = [
        ("count", c_int64),
        *((name, c_void_p) for name in ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
        ("negative_step_size", c_float),
        ("scale", c_float),
    ]
