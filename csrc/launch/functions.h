// The contract's functions one by one, and the self-test of a build.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace pytorch_ext {

void define_functions(pybind11::module_& m);

}  // namespace pytorch_ext
