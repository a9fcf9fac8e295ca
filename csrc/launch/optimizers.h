// The optimisers' way in from Python.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace pytorch_ext {

void define_optimizers(pybind11::module_& m);

}  // namespace pytorch_ext
