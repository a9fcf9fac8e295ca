// The optimisers' way in from Python, and clipping.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <vector>

namespace pytorch_ext {

void define_optimizers(pybind11::module_& m);

// Whether a hook or the profiler wants to see a step of the optimiser whose attributes, its __dict__, these are.
bool is_observed(PyObject* attributes);

// Scales the gradients, which are contiguous, disjoint and of one dtype, down to `max_norm`; their 2-norm goes to
// `norm`, one element of the dtype they are computed in.
void clip_gradients(const std::vector<at::Tensor>& grads, double max_norm, bool error_if_nonfinite,
                    const at::Tensor& norm);

}  // namespace pytorch_ext
