// Importing arrays, the quickest way that each kind has.
//
// numpy:   its own structure, so that read-only inputs pass.
// others:  the exchange table that their type carries (torch from 2.10: 0.1 us an array), else a `__dlpack__` capsule
//          (some microseconds). Device arrays come with stream=-1: the caller orders the work, nothing waits.

#include "arrays.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <utility>

#include "dlpack.h"
#ifdef HOTLOOP_CUDA
#include "ops_cuda.h"
#endif

namespace py = pybind11;

namespace hotloop {
namespace {

struct Place {
    const char* op;
    const char* name;

    [[noreturn]] void fail(const char* rule, std::string got) const {
        throw Error(op, std::string(name) + " " + rule, std::move(got));
    }
};

constexpr const char* kTypes = "must be float32, float16, bfloat16, uint8, bool or int32";
constexpr int kNumpyHalf = 23;  // NPY_HALF

#ifdef HOTLOOP_CUDA
constexpr int kOldest = 80;
#endif

Proved& proved() {
    static Proved table;  // guarded by the GIL
    return table;
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

void check_layout(const Place& place, const Tensor& tensor) {
    if (reinterpret_cast<uintptr_t>(tensor.data) % bytes_of(tensor.dtype) != 0)
        place.fail("must be aligned to its dtype", "an odd address");
}

void check_rank(const Place& place, int64_t ndim) {
    if (ndim > kMaxDims) place.fail("must have at most 5 axes", std::to_string(ndim));
}

DType numpy_dtype(const Place& place, const py::array& array) {
    const py::dtype type = array.dtype();
    if (type.byteorder() == '>') place.fail("must be in this machine's byte order", "big-endian values");
    switch (type.num()) {
        case py::detail::npy_api::NPY_FLOAT_: return DType::f32;
        case kNumpyHalf: return DType::f16;
        case py::detail::npy_api::NPY_INT_: return DType::i32;
        case py::detail::npy_api::NPY_UBYTE_:
        case py::detail::npy_api::NPY_BOOL_: return DType::u8;
        default: break;
    }
    const std::string name = py::str(type.attr("name"));
    if (name == "bfloat16") return DType::bf16;  // a type that ml_dtypes adds to numpy: its number is not fixed
    place.fail(kTypes, name);
}

Tensor from_numpy(const Place& place, const py::array& array, bool writable) {
    if (writable && !array.writeable()) place.fail("must be writable", "a read-only array");
    check_rank(place, array.ndim());
    Tensor t;
    t.data = const_cast<void*>(array.data());
    t.dtype = numpy_dtype(place, array);
    t.ndim = static_cast<int>(array.ndim());
    const int64_t bytes = bytes_of(t.dtype);
    for (int i = 0; i < t.ndim; ++i) {
        t.shape[i] = array.shape(i);
        if (t.shape[i] != 1 && array.strides(i) % bytes != 0)
            place.fail("must have strides of whole values", std::to_string(array.strides(i)) + " bytes");
        t.stride[i] = array.strides(i) / bytes;
    }
    return t;
}

DType dlpack_dtype(const Place& place, const dlpack::DataType& type) {
    const bool one = type.lanes == 1;
    if (one && type.code == dlpack::kFloat && type.bits == 32) return DType::f32;
    if (one && type.code == dlpack::kFloat && type.bits == 16) return DType::f16;
    if (one && type.code == dlpack::kBfloat && type.bits == 16) return DType::bf16;
    if (one && type.code == dlpack::kUInt && type.bits == 8) return DType::u8;
    if (one && type.code == dlpack::kBool && type.bits == 8) return DType::u8;
    if (one && type.code == dlpack::kInt && type.bits == 32) return DType::i32;
    const char* kind = type.code == dlpack::kInt     ? "int"
                       : type.code == dlpack::kUInt  ? "uint"
                       : type.code == dlpack::kFloat ? "float"
                                                     : "a type of ";
    place.fail(kTypes, kind + std::to_string(type.bits));
}

Tensor from_dlpack(const Place& place, const dlpack::Tensor& view) {
    check_rank(place, view.ndim);
    Tensor t;
    switch (view.device.type) {
        case dlpack::kCpu:
        case dlpack::kCudaHost: break;  // page-locked memory of this machine
        case dlpack::kCuda:
        case dlpack::kCudaManaged: t.device = {true, view.device.id}; break;
        default: place.fail("must be on the CPU or a CUDA device", "DLPack device " + std::to_string(view.device.type));
    }
    t.data = static_cast<char*>(view.data) + view.byte_offset;
    t.dtype = dlpack_dtype(place, view.dtype);
    t.ndim = view.ndim;
    int64_t dense = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
        t.shape[i] = view.shape[i];
        t.stride[i] = view.strides ? view.strides[i] : dense;
        dense *= t.shape[i];
    }
    return t;
}

// The table of an array's type, or null. Types are few and live long: a reference to each is kept.
const dlpack::Exchange* exchange_of(PyTypeObject* type) {
    struct Known {
        PyTypeObject* type;
        const dlpack::Exchange* exchange;
    };
    static std::vector<Known> known;  // guarded by the GIL
    for (const Known& k : known)
        if (k.type == type) return k.exchange;

    const dlpack::Exchange* found = nullptr;
    const py::handle handle(reinterpret_cast<PyObject*>(type));
    const py::object capsule = py::getattr(handle, "__dlpack_c_exchange_api__", py::none());
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        const auto* header = static_cast<const dlpack::ExchangeHeader*>(
            PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        while (header && header->version.major != dlpack::kMajor) header = header->previous;
        found = reinterpret_cast<const dlpack::Exchange*>(header);
        if (found && !found->view_from_object) found = nullptr;
    }
    handle.inc_ref();
    known.push_back({type, found});
    return found;
}

py::object capsule_of(const Place& place, py::handle array) {
    if (!py::hasattr(array, "__dlpack__"))
        place.fail("must be an array of numpy, torch, cupy or another library with DLPack", type_name(array));
    const auto device = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    const bool cuda = device.first == dlpack::kCuda || device.first == dlpack::kCudaManaged;
    py::dict keywords;
    if (cuda) keywords["stream"] = -1;
    keywords["max_version"] = py::make_tuple(dlpack::kMajor, 0);
    const py::object dlpack = array.attr("__dlpack__");
    try {
        return dlpack(**keywords);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
    }
    // A library from before DLPack 1.0.
    return cuda ? dlpack(py::arg("stream") = -1) : dlpack();
}

// The capsule keeps its name, so that its own destructor releases the array after the call.
Tensor from_capsule(const Place& place, py::handle capsule, bool writable) {
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        const auto* managed = static_cast<const dlpack::ManagedTensorVersioned*>(
            PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        if (managed->version.major != dlpack::kMajor)
            place.fail("must come by DLPack 1", "version " + std::to_string(managed->version.major));
        if (writable && (managed->flags & dlpack::kReadOnly)) place.fail("must be writable", "a read-only array");
        return from_dlpack(place, managed->tensor);
    }
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor"))
        return from_dlpack(place, static_cast<const dlpack::ManagedTensor*>(
                                      PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor);
    place.fail("must come by DLPack", type_name(capsule));
}

}  // namespace

Tensor Arrays::import(py::handle array, const char* name, bool writable) {
    if (array.is_none()) return {};
    const Place place{op_, name};
    Tensor tensor;
    if (py::isinstance<py::array>(array)) {
        tensor = from_numpy(place, py::reinterpret_borrow<py::array>(array), writable);
    } else if (const dlpack::Exchange* exchange = exchange_of(Py_TYPE(array.ptr()))) {
        dlpack::Tensor view{};
        if (exchange->view_from_object(array.ptr(), &view) != 0) {
            // torch's own message goes on for pages.
            const std::string reason = py::error_already_set().what();
            place.fail("must have memory that an operator can use", reason.substr(0, reason.find('\n')));
        }
        tensor = from_dlpack(place, view);
    } else {
        capsules_.push_back(capsule_of(place, array));
        tensor = from_capsule(place, capsules_.back(), writable);
    }
    check_layout(place, tensor);
    same_device(tensor, name);
    return tensor;
}

void Arrays::same_device(const Tensor& tensor, const char* name) {
    if (!first_) {
        first_ = name;
        device_ = tensor.device;
    } else if (tensor.device != device_) {
        throw Error(op_, "arrays must be on one device",
                    std::string(first_) + " on " + to_string(device_) + ", " + name + " on " + to_string(tensor.device));
    }
}

void set_proved(Proved all) { proved() = std::move(all); }

bool Arrays::on_cuda(bool unproved) const {
    if (!device_.cuda) return false;
#ifdef HOTLOOP_CUDA
    const int number = architecture(device_.index);
    const std::string name = "sm_" + std::to_string(number);
    if (number < kOldest) throw Error(op_, "the GPU must be of sm_80 (Ampere) or later", name);
    const auto found = proved().find(name);
    const bool known = found != proved().end() &&
                       std::find(found->second.begin(), found->second.end(), op_) != found->second.end();
    if (!unproved && !known)
        throw Error(op_, "the operator must have passed `make gpu-check` on this GPU, or take unproved=True", name);
    return true;
#else
    static_cast<void>(unproved);
    throw Error(op_, "arrays must be on the CPU: the operators were built without CUDA", to_string(device_));
#endif
}

std::string to_string(const Device& device) { return device.cuda ? "cuda:" + std::to_string(device.index) : "cpu"; }

std::string to_string(DType dtype) {
    constexpr const char* names[] = {"float32", "float16", "bfloat16", "uint8", "int32"};
    return names[static_cast<int>(dtype)];
}

std::string shape_of(const Tensor& tensor) {
    std::string text = "[";
    for (int i = 0; i < tensor.ndim; ++i) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
    return text + "]";
}

}  // namespace hotloop
