// The compiled operators as a Python module: arrays to views, nothing else. <op>.py has checked every argument.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>

#include "arrays.h"
#include "common.h"
#include "ops_cuda.h"
#include "threads.h"

namespace py = pybind11;

namespace {

using hotloop::Images;
using Floats = py::array_t<float, 0>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Rows = py::array_t<int32_t, py::array::c_style>;
using Optional = std::optional<Floats>;

// [N, ...] with contiguous images.
Images<const float> images(const Floats& array) { return {array.data(), array.strides(0) / 4}; }
Images<const float> images(const Optional& array) { return array ? images(*array) : Images<const float>{}; }
const float* data(const Optional& array) { return array ? array->data() : nullptr; }

void cfg_step(Floats state, const Floats& m_c, const Optional& m_u, const Rows& rows, const Floats& guidance,
              const Floats& update, const Floats& p_x, const Floats& p_m, const Optional& z, const Optional& mask,
              const Optional& known, const Optional& eps, const Optional& k_img, const Optional& k_eps,
              const Optional& residual) {
    hotloop::CfgStep s{};
    s.states = static_cast<int>(state.shape(0));
    s.images = state.shape(1);
    s.channels = state.shape(2);
    s.pixels = state.shape(3) * state.shape(4);
    for (int k = 0; k < s.states; ++k)
        s.state[k] = {state.mutable_data() + k * (state.strides(0) / 4), state.strides(1) / 4};
    s.m_c = images(m_c);
    s.m_u = images(m_u);
    s.z = images(z);
    s.mask = images(mask);
    s.known = images(known);
    s.eps = images(eps);
    s.rows = rows.data();
    s.guidance = guidance.data();
    s.update = update.data();
    s.p_x = p_x.data();
    s.p_m = p_m.data();
    s.k_img = data(k_img);
    s.k_eps = data(k_eps);
    s.residual = data(residual);
    py::gil_scoped_release release;
    hotloop::cfg_step(s);
}

bool rgb_pack(const Floats& in, Bytes out) {
    uint8_t* bytes = out.mutable_data();
    py::gil_scoped_release release;
    return hotloop::rgb_pack(images(in), bytes, in.shape(0), in.shape(1), in.shape(2) * in.shape(3));
}

void rgb_unpack(const Bytes& in, Floats out) {
    float* x = out.mutable_data();
    py::gil_scoped_release release;
    hotloop::rgb_unpack(in.data(), x, in.shape(0), in.shape(3), in.shape(1) * in.shape(2));
}

// The function that a build with CUDA has; without it, Arrays::on_cuda lets no device array through.
#ifdef HOTLOOP_CUDA
#define HOTLOOP_ON_CUDA(function) function
#else
#define HOTLOOP_ON_CUDA(function) nullptr
#endif

template <class Op>
void run(const hotloop::Arrays& arrays, const Op& op, void (*cpu)(const Op&),
         void (*cuda)(const std::common_type_t<Op>&, cudaStream_t), uintptr_t stream, bool unproved) {
    const bool on_cuda = arrays.on_cuda(unproved);
    py::gil_scoped_release release;
    if (on_cuda) {
        cuda(op, reinterpret_cast<cudaStream_t>(stream));
    } else {
        cpu(op);
    }
}

// The same values at a larger shape: an axis of size 1, or one that is missing in front, is repeated.
hotloop::Tensor broadcast(const hotloop::Tensor& t, std::initializer_list<int64_t> shape) {
    if (!t) return t;
    hotloop::Tensor view = t;
    view.ndim = static_cast<int>(shape.size());
    const int added = view.ndim - t.ndim;
    for (int i = 0; i < view.ndim; ++i) {
        view.shape[i] = shape.begin()[i];
        view.stride[i] = i < added || t.shape[i - added] == 1 ? 0 : t.stride[i - added];
    }
    return view;
}

// segments: of (k, v, weight).
void attention(py::handle q, py::handle k, py::handle v, py::handle mask, float scale, const py::list& segments,
               py::handle out, uintptr_t stream, bool unproved) {
    hotloop::Arrays arrays("attention");
    const auto packed = [](const hotloop::Tensor& t, const char* name) {
        if (t.stride[3] != 1)
            throw hotloop::Error("attention", std::string(name) + " must be contiguous over its last axis",
                                 "a stride of " + std::to_string(t.stride[3]));
        return t;
    };
    hotloop::Attention op{};
    op.q = packed(arrays.read(q, "q"), "q");
    op.k = packed(arrays.read(k, "k"), "k");
    op.v = packed(arrays.read(v, "v"), "v");
    op.out = packed(arrays.write(out, "out"), "out");
    const int64_t B = op.q.shape[0], Tq = op.q.shape[1], H = op.q.shape[2];
    op.mask = broadcast(arrays.read(mask, "mask"), {B, H, Tq, op.k.shape[1]});
    op.scale = scale;
    for (const py::handle segment : segments) {
        const auto [segment_k, segment_v, weight] = segment.cast<std::tuple<py::object, py::object, py::object>>();
        op.segment[op.segments++] = {packed(arrays.read(segment_k, "a segment's k"), "a segment's k"),
                                     packed(arrays.read(segment_v, "a segment's v"), "a segment's v"),
                                     broadcast(arrays.read(weight, "a segment's weight"), {B, H, Tq})};
    }
    run(arrays, op, &hotloop::attention, HOTLOOP_ON_CUDA(&hotloop::attention_cuda), stream, unproved);
}

void geglu(py::handle x, py::handle out, uintptr_t stream, bool unproved) {
    hotloop::Arrays arrays("geglu");
    const hotloop::Geglu op{arrays.read(x, "x"), arrays.write(out, "out")};
    run(arrays, op, &hotloop::geglu, HOTLOOP_ON_CUDA(&hotloop::geglu_cuda), stream, unproved);
}

// [N, h, w, C] -> [N, C, h, w], the same values.
hotloop::Tensor channels_first(const hotloop::Tensor& t) {
    hotloop::Tensor view = t;
    constexpr int axes[] = {0, 3, 1, 2};
    for (int i = 0; i < 4; ++i) {
        view.shape[i] = t.shape[axes[i]];
        view.stride[i] = t.stride[axes[i]];
    }
    return view;
}

void group_norm_silu(py::handle x, py::handle weight, py::handle bias, int groups, float eps, bool silu,
                     bool channels_last, py::handle out, uintptr_t stream, bool unproved) {
    hotloop::Arrays arrays("group_norm_silu");
    hotloop::GroupNormSilu op{};
    op.x = arrays.read(x, "x");
    op.weight = arrays.read(weight, "weight");
    op.bias = arrays.read(bias, "bias");
    op.out = arrays.write(out, "out");
    op.groups = groups;
    op.eps = eps;
    op.silu = silu;
    if (channels_last) {
        op.x = channels_first(op.x);
        op.out = channels_first(op.out);
    }
    run(arrays, op, &hotloop::group_norm_silu, HOTLOOP_ON_CUDA(&hotloop::group_norm_silu_cuda), stream, unproved);
}

void layer_norm(py::handle x, py::handle weight, py::handle bias, float eps, py::handle out, uintptr_t stream,
                bool unproved) {
    hotloop::Arrays arrays("layer_norm");
    hotloop::LayerNorm op{};
    op.x = arrays.read(x, "x");
    op.weight = arrays.read(weight, "weight");
    op.bias = arrays.read(bias, "bias");
    op.out = arrays.write(out, "out");
    op.eps = eps;
    run(arrays, op, &hotloop::layer_norm, HOTLOOP_ON_CUDA(&hotloop::layer_norm_cuda), stream, unproved);
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

// Python's KernelError for an Error.
void raise(std::exception_ptr thrown) {
    try {
        std::rethrow_exception(thrown);
    } catch (const hotloop::Error& error) {
        const py::object type = py::module_::import("hotloop_kernels.checks").attr("KernelError");
        const py::object raised = type(error.op, error.rule, error.got);
        PyErr_SetObject(type.ptr(), raised.ptr());
    }
}

void set_isa(const std::string& name) {
    for (const auto isa : {hotloop::Isa::scalar, hotloop::Isa::avx2, hotloop::Isa::avx512})
        if (name == name_of(isa) && isa <= hotloop::best_isa()) return hotloop::set_isa(isa);
    const std::string best = name_of(hotloop::best_isa());
    throw hotloop::Error("kernels", "HOTLOOP_ISA must be scalar, avx2 or avx512 and not above this machine's " + best,
                         name);
}

void set_threads(int count) {
    if (count < 1) throw hotloop::Error("kernels", "the count of threads must be at least 1", std::to_string(count));
    hotloop::set_threads(count);
}

// The architectures that CUDA operators were compiled for, as CMake names them: "80-real 90a-real".
#ifdef HOTLOOP_CUDA
constexpr const char* kCudaArchitectures = HOTLOOP_CUDA;
#else
constexpr const char* kCudaArchitectures = "";
#endif

}  // namespace

// noconvert: an array of another type would be updated as a copy, silently.
PYBIND11_MODULE(_ops, m) {
    m.attr("max_states") = hotloop::kMaxStates;
    m.attr("max_segments") = hotloop::kMaxSegments;
    m.attr("compiler") = compiler();
    m.attr("cuda_architectures") = kCudaArchitectures;
    m.attr("best_isa") = name_of(hotloop::best_isa());
    m.def("isa", [] { return name_of(hotloop::isa()); });
    m.def("set_isa", &set_isa);
    m.def("threads", &hotloop::threads);
    m.def("set_threads", &set_threads);
    m.def("set_proved", &hotloop::set_proved);
    py::register_local_exception_translator(&raise);
    m.def("cfg_step", &cfg_step, py::arg("state").noconvert(), py::arg("m_c").noconvert(), py::arg("m_u"),
          py::arg("rows").noconvert(), py::arg("guidance").noconvert(), py::arg("update").noconvert(),
          py::arg("p_x").noconvert(), py::arg("p_m").noconvert(), py::arg("z"), py::arg("mask"), py::arg("known"),
          py::arg("eps"), py::arg("k_img"), py::arg("k_eps"), py::arg("residual"));
    m.def("attention", &attention);
#ifdef HOTLOOP_CUDA
    m.def("attention_use_wgmma", &hotloop::attention_use_wgmma);
#endif
    m.def("geglu", &geglu);
    m.def("group_norm_silu", &group_norm_silu);
    m.def("layer_norm", &layer_norm);
    m.def("rgb_pack", &rgb_pack, py::arg("in").noconvert(), py::arg("out").noconvert());
    m.def("rgb_unpack", &rgb_unpack, py::arg("in").noconvert(), py::arg("out").noconvert());
}
