// What every CUDA operator shares: checked calls, and the device that a launch goes to.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "tensor.h"

namespace hotloop {

inline void check(const char* op, cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("[") + op + "] CUDA: " + cudaGetErrorString(error));
}

// The device of the arrays is the current one while this lives; the caller's own comes back after.
class OnDevice {
  public:
    OnDevice(const char* op, const Device& device) {
        check(op, cudaGetDevice(&before_));
        if (before_ != device.index) check(op, cudaSetDevice(device.index));
        changed_ = before_ != device.index;
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

}  // namespace hotloop
