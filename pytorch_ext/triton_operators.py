"""The Triton path as registered operators, ``torch.ops.pytorch_ext_triton``: for torch.compile and torch.export.

They need no native library, whose schemas they share. An operator is opaque to the compiler: what
``torch.library.triton_op`` shows to Inductor it compiles anew, without the option ``enable_fp_fusion=False`` of our
launches, and a product and a sum would become one fma.
"""

import torch
import torch.nn.functional as F

from .ops.activation import stock_activation
from .ops.dropout import DropoutFunction
from .ops.linear_cross_entropy import composed
from .ops.losses import as_kernels_are_called
from .ops.paths import FAKES
from .triton_path import kernels, launcher, namespace

NAME = "pytorch_ext_triton"

# What has derivatives: a function of triton_namespace, which calls the operators below. The list is csrc/ops.cpp's.
DIFFERENTIABLE = """
linear(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor
matmul(Tensor input, Tensor other) -> Tensor
scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, float? scale) -> Tensor
softmax(Tensor input, int dim, ScalarType? dtype=None) -> Tensor
log_softmax(Tensor input, int dim, ScalarType? dtype=None) -> Tensor
activation(Tensor input, str kind) -> Tensor
dropout(Tensor input, float p, Tensor key) -> Tensor
mse_loss(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor
binary_cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor
binary_cross_entropy_with_logits(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int reduction) -> Tensor
cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing) -> Tensor
linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, float label_smoothing, ScalarType? dtype=None) -> Tensor
nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor
"""  # noqa: E501

# What launches kernels.
LAUNCHERS = """
linear_inference(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor
linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation) -> (Tensor, Tensor)
linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? saved, str activation, bool[3] mask) -> (Tensor, Tensor, Tensor)
matmul_forward(Tensor input, Tensor other) -> Tensor
matmul_backward(Tensor grad, Tensor input, Tensor other, bool[2] mask) -> (Tensor, Tensor)
scaled_dot_product_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, float? scale) -> Tensor
scaled_dot_product_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, float? scale, bool[3] mask) -> (Tensor, Tensor, Tensor)
softmax_forward(Tensor input, int dim, bool logarithm) -> Tensor
softmax_backward(Tensor grad, Tensor output, int dim, bool logarithm) -> Tensor
activation_forward(Tensor input, str kind) -> Tensor
activation_backward(Tensor grad, Tensor saved, str kind) -> Tensor
dropout_forward(Tensor input, float p, Tensor key) -> Tensor
elementwise_loss_inference(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str loss, int reduction) -> Tensor
elementwise_loss_forward(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str loss, int reduction, bool[2] mask) -> (Tensor, Tensor, Tensor)
elementwise_loss_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str loss, int reduction, bool[2] mask) -> (Tensor, Tensor)
cross_entropy_inference(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing) -> Tensor
cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing, bool with_gradient) -> (Tensor, Tensor)
cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float label_smoothing, bool[2] mask) -> (Tensor, Tensor)
linear_cross_entropy_inference(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, float label_smoothing, ScalarType? dtype) -> Tensor
linear_cross_entropy_forward(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, float label_smoothing, ScalarType? dtype, bool[3] mask) -> (Tensor, Tensor, Tensor, Tensor)
linear_cross_entropy_backward(Tensor grad, Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, float label_smoothing, bool[3] mask) -> (Tensor, Tensor, Tensor)
nll_loss_forward(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor
nll_loss_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor
"""  # noqa: E501

# Their last argument may be left out.
OPTIONAL = {schema.partition("(")[0]: schema for schema in DIFFERENTIABLE.split("\n") if "dtype=None" in schema}

# The stock composition of what the namespace does not cover.
STOCK = {
    "linear": lambda x, w, b, activation: stock_activation("linear", activation)(F.linear(x, w, b)),
    "matmul": torch.matmul,
    "scaled_dot_product_attention": lambda q, k, v, mask, is_causal, scale: F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, is_causal, scale=scale
    ),
    "activation": lambda x, kind: stock_activation("activation", kind)(x),
    **as_kernels_are_called(F),
    "linear_cross_entropy": composed,
}


def differentiable(name):
    """The operator that composes a function of the namespace, or the stock operators, out of others."""

    def call(*arguments):
        if name == "dropout":
            return DropoutFunction.apply(*arguments)
        if name in OPTIONAL and len(arguments) == OPTIONAL[name].count(","):
            arguments += (None,)
        function = namespace.mse_loss_broadcast if name == "mse_loss" else getattr(namespace, name)
        result = function(*arguments)
        return STOCK[name](*arguments) if result is None else result

    return call


library = torch.library.Library(NAME, "DEF")
for schema in DIFFERENTIABLE.split("\n")[1:-1]:
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, differentiable(name), "CompositeImplicitAutograd")
for schema in LAUNCHERS.split("\n")[1:-1]:
    library.define(schema)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        library.impl(name, launcher(name), key)
    torch.library.register_fake(f"{NAME}::{name}", FAKES[name], lib=library)
library.define("dropout_key(Generator? generator=None) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
library.impl("dropout_key", lambda generator=None: kernels.dropout.dropout_key(generator), "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAME}::dropout_key", FAKES["dropout_key"], lib=library)
