"""The structs that csrc/cpu/*.h, csrc/cuda/*.h and csrc/numerics/updates.h declare."""

import functools
from ctypes import Structure, c_bool, c_double, c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from types import SimpleNamespace

import torch

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu")
LOSSES = ("mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
REDUCTIONS = ("none", "mean", "sum")
FUNCTIONS = ("exp", "exp_nonpositive", "log", "log1p", "tanh", "sigmoid", "erf")
SAVES_INPUT = ("gelu", "gelu_tanh", "silu")
STORAGE = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "BFloat16", torch.float16: "Half"}

# Fields in order: an int64, a pointer*, or a name:type.
DECLARATIONS = {
    "MatrixView": "data* row column",
    "Product": "M N K A:MatrixView B:MatrixView C* c_row bias* activation:enum preactivation* batch a_offset* b_offset*"
    " c_batch accumulates:bool",
    "TensorCoreProduct": "product:Product a_batch b_batch mask*",
    "Heads": "first:MatrixView offset*",
    "Attention": "heads queries keys width value_width q:Heads k:Heads v:Heads added:Heads allowed:Heads"
    " is_causal:bool scale:real",
    "AttentionOutput": "of:Attention output*",
    "AttentionGradient": "of:Attention grad:Heads dq* dk* dv*",
    "BatchOffsets": "dims:enum size:24 stride:24 count offsets*",
    "LinearGradient": "rows columns grad* grad_row grad_column saved* activation:enum mask* dz* dbias*",
    "Dropout": "n x* y* key:uint64 threshold:uint32 scale:real key_at*",
    "SliceSum": "outer rows inner x* x_outer x_row x_inner y*",
    "DotProduct": "count x* x_stride y* y_stride result*",
    "ElementwiseLossArrays": "loss:enum reduction:enum count input* target* weight* pos_weight* mean_weight*"
    " mean_weight_count grad* value* dinput* dtarget* in_advance:bool",
    "Softmax": "outer columns inner x* x_outer y* logarithm:bool",
    "SoftmaxGradient": "outer columns inner grad* y* dx* logarithm:bool",
    "ClassificationLoss": "outer classes inner input* input_outer indices* probabilities* ignore_index counted_rows"
    " weight* smoothed:bool kept:real spread:real on_target:real reduction:enum grad* loss* dinput* dprobabilities*"
    " in_advance:bool",
    "SgdRule": "negative_lr:real momentum:real one_minus_dampening:real weight_decay:real nesterov:bool maximize:bool",
    "SgdTensor": "count param* grad* buffer* first:bool",
    "AdamRule": "beta1:real one_minus_beta1:real beta2:real one_minus_beta2:real eps:real weight_decay:real"
    " negative_lr_weight_decay:real decoupled:bool amsgrad:bool maximize:bool",
    "AdamTensor": "count param* grad* exp_avg* exp_avg_sq* max_exp_avg_sq* negative_step_size:real scale:real",
    "AdamNumbers": "rule:AdamRule negative_step_size:real scale:real",
    "GradTensor": "count grad*",
    "GraphInput": "source* to* count",
    "GraphArguments": "inputs:two_inputs at* count:enum numbers:480",
}


@functools.cache
def structures(dtype):
    """Every struct for tensors of `dtype`, by its name."""
    kinds = {"enum": c_int, "bool": c_bool, "uint32": c_uint32, "uint64": c_uint64}
    kinds |= {"24": c_int64 * 24, "480": c_uint64 * 480}
    kinds["real"] = c_double if dtype == torch.float64 else c_float
    for name, fields in DECLARATIONS.items():
        parts = (field.partition(":") for field in fields.split())
        typed = [
            (f.rstrip("*"), kinds[kind] if kind else c_void_p if f[-1] == "*" else c_int64) for f, _, kind in parts
        ]
        kinds[name] = type(name, (Structure,), {"_fields_": typed})
        if name == "GraphInput":
            kinds["two_inputs"] = kinds[name] * 2
    return SimpleNamespace(**{name: kinds[name] for name in DECLARATIONS})
