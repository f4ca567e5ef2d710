// Arrays of the caller's library as Tensors: numpy, torch, cupy and whatever else speaks DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <string>
#include <vector>

#include "common.h"
#include "tensor.h"

namespace hotloop {

// The arrays of one call: keeps them alive, and sees that all are on one device.
class Arrays {
  public:
    explicit Arrays(const char* op) : op_(op) {}

    // None is an absent tensor. Nothing is copied, and a device is not synchronised with.
    Tensor read(pybind11::handle array, const char* name) { return import(array, name, false); }
    Tensor write(pybind11::handle array, const char* name) { return import(array, name, true); }

    // True when the arrays are on a CUDA device, and the operator may run there: it is in this build, the GPU is not too
    // old, and it was proved on such GPUs or the caller does not mind.
    bool on_cuda(bool unproved) const;
    const char* op() const { return op_; }

  private:
    Tensor import(pybind11::handle array, const char* name, bool writable);
    void same_device(const Tensor& tensor, const char* name);

    const char* op_;
    const char* first_ = nullptr;
    Device device_;
    std::vector<pybind11::object> capsules_;
};

// Architecture ("sm_90") -> operators that passed their tests there.
using Proved = std::map<std::string, std::vector<std::string>>;
void set_proved(Proved proved);

std::string to_string(const Device& device);
std::string to_string(DType dtype);
std::string shape_of(const Tensor& tensor);  // "[2, 320, 64, 64]"

}  // namespace hotloop
