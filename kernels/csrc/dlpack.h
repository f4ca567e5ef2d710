// The part of the DLPack ABI (version 1.3) that importing arrays needs, declared after its published specification:
// https://dmlc.github.io/dlpack/latest. Structures and values are the ABI's; names follow it, without the prefix DL.
#pragma once

#include <cstdint>

namespace hotloop::dlpack {

constexpr uint32_t kMajor = 1;
constexpr uint64_t kReadOnly = 1;  // bit of ManagedTensorVersioned::flags

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Version {
    uint32_t major, minor;
};

struct Device {
    int32_t type, id;
};

struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null: row-major without gaps
    uint64_t byte_offset;
};

// In a capsule named "dltensor".
struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

// In a capsule named "dltensor_versioned".
struct ManagedTensorVersioned {
    Version version;
    void* context;
    void (*deleter)(ManagedTensorVersioned*);
    uint64_t flags;
    Tensor tensor;
};

// In a capsule named "dlpack_exchange_api", which an array's type may carry as `__dlpack_c_exchange_api__`: the same
// exchange without Python calls. Functions that are not called here stand as plain pointers.
struct ExchangeHeader {
    Version version;
    ExchangeHeader* previous;  // an older major version of the table, or null
};

struct Exchange {
    ExchangeHeader header;
    void (*allocate)();
    void (*managed_from_object)();
    void (*object_from_managed)();
    // Fills a view that lives as long as the object; may be null. Nonzero with a Python error set when it fails.
    int (*view_from_object)(void* object, Tensor* out);
    void (*current_stream)();
};

}  // namespace hotloop::dlpack
