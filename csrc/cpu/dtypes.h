// Every storage type the CPU kernels are instantiated for.
#pragma once

#include "../numerics/kinds.h"

#define PYTORCH_EXT_EACH_DTYPE(X) X(float) X(double) X(BFloat16) X(Half)
