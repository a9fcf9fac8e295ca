// Every storage type the kernels are instantiated for.
#pragma once

#include "../numerics/kinds.h"

#define PYTORCH_EXT_EACH_DTYPE(X) X(float) X(double) X(::pytorch_ext::BFloat16) X(::pytorch_ext::Half)
