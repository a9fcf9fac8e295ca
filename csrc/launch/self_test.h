// Whether kernels compute what the specification says, on the CPU or on a device: tried at import and at first use.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <map>
#include <string>

namespace pytorch_ext {

// In the order of the enumeration Function.
constexpr const char* FUNCTION_NAMES[] = {"exp", "exp_nonpositive", "log", "log1p", "tanh", "sigmoid", "erf"};
constexpr int FUNCTION_COUNT = sizeof FUNCTION_NAMES / sizeof *FUNCTION_NAMES;

// The name of the first result that differs; empty where none does.
std::string self_test(c10::Device device);
std::map<std::string, uint64_t> self_test_hashes(c10::Device device);

}  // namespace pytorch_ext
