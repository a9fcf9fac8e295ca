// TrainStep's way in from Python.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace pytorch_ext::train {

void define_train_step(pybind11::module_& m);

}  // namespace pytorch_ext::train
