// The compiled operators as a Python module: arrays to views, nothing else. <op>.py has checked every argument.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.h"
#include "common.h"
#include "group_norm_tiles.h"
#include "ops_cuda.h"
#include "threads.h"

namespace py = pybind11;

namespace {

using hotloop::Arrays;
using hotloop::Error;
using hotloop::Images;
using hotloop::Tensor;

// The function that a build with CUDA has; without it, Arrays::on_cuda lets no device array through.
#ifdef HOTLOOP_CUDA
#define HOTLOOP_ON_CUDA(function) function
#else
#define HOTLOOP_ON_CUDA(function) nullptr
#endif

template <class Op, class Cpu>
void run(const Arrays& arrays, const Op& op, const Cpu& cpu, void (*cuda)(const std::common_type_t<Op>&, cudaStream_t),
         uintptr_t stream, bool unproved) {
    const bool on_cuda = arrays.on_cuda(unproved);
    py::gil_scoped_release release;
    if (on_cuda) {
        cuda(op, reinterpret_cast<cudaStream_t>(stream));
    } else {
        cpu(op);
    }
}

// A tensor whose axes from `axis` on lie together in memory, row-major, or which is empty.
const Tensor& dense(const Arrays& arrays, const Tensor& t, const char* name, int axis) {
    if (size_of(t) == 0) return t;
    Tensor part = t;
    part.ndim = 0;
    for (int i = axis; i < t.ndim; ++i) {
        part.shape[part.ndim] = t.shape[i];
        part.stride[part.ndim++] = t.stride[i];
    }
    if (!is_contiguous(part)) throw Error(arrays.op(), std::string(name) + " must be contiguous", "gaps between values");
    return t;
}

class StepArrays {
  public:
    Images<const float> images(py::handle array, const char* name) {
        const Tensor t = dense(arrays, arrays.read(array, name), name, 1);
        return {static_cast<const float*>(t.data), t.stride[0]};
    }
    const float* numbers(py::handle array, const char* name) {
        return static_cast<const float*>(dense(arrays, arrays.read(array, name), name, 0).data);
    }

    Arrays arrays{"cfg_step"};
};

// What the host can see of the rows: nothing on a device, where a row that does not fit gives NaN.
void check_rows(const hotloop::CfgStep& s) {
    for (int64_t n = 0; n < s.images; ++n) {
        const int64_t row = s.rows[n], matrix = s.states * (s.states + 2);
        if (row < 0 || row >= s.table)
            throw Error("cfg_step", "rows must lie in 0.." + std::to_string(s.table - 1), std::to_string(row));
        for (int64_t i = row * matrix + s.states + 1; !s.z && i < (row + 1) * matrix; i += s.states + 2)
            if (s.update[i] != 0.0f)
                throw Error("cfg_step", "z must be given for rows with a noise column", std::to_string(row));
    }
}

void cfg_step(py::handle state, py::handle m_c, py::handle m_u, py::handle rows, py::handle guidance, py::handle update,
              py::handle p_x, py::handle p_m, py::handle z, py::handle mask, py::handle known, py::handle eps,
              py::handle k_img, py::handle k_eps, py::handle residual, uintptr_t stream, bool unproved, bool by_value) {
    StepArrays in;
    const Tensor whole = dense(in.arrays, in.arrays.write(state, "state"), "an image of state", 2);
    hotloop::CfgStep s{};
    s.states = static_cast<int>(whole.shape[0]);
    s.images = whole.shape[1];
    s.channels = whole.shape[2];
    s.pixels = whole.shape[3] * whole.shape[4];
    for (int k = 0; k < s.states; ++k)
        s.state[k] = {static_cast<float*>(whole.data) + k * whole.stride[0], whole.stride[1]};
    s.m_c = in.images(m_c, "m_c");
    s.m_u = in.images(m_u, "m_u");
    s.z = in.images(z, "z");
    s.mask = in.images(mask, "mask");
    s.known = in.images(known, "known");
    s.eps = in.images(eps, "eps");
    s.rows = static_cast<const int32_t*>(dense(in.arrays, in.arrays.read(rows, "rows"), "rows", 0).data);
    s.guidance = in.numbers(guidance, "guidance");
    const Tensor matrices = dense(in.arrays, in.arrays.read(update, "update"), "update", 0);
    s.table = matrices.shape[0];
    s.update = static_cast<const float*>(matrices.data);
    s.p_x = in.numbers(p_x, "p_x");
    s.p_m = in.numbers(p_m, "p_m");
    s.k_img = in.numbers(k_img, "k_img");
    s.k_eps = in.numbers(k_eps, "k_eps");
    s.residual = in.numbers(residual, "residual");
    const bool on_cuda = in.arrays.on_cuda(unproved);
    if (!on_cuda && !by_value) check_rows(s);
    py::gil_scoped_release release;
    if (on_cuda) {
#ifdef HOTLOOP_CUDA
        hotloop::cfg_step_cuda(s, whole.device, reinterpret_cast<cudaStream_t>(stream));
#else
        static_cast<void>(stream);
#endif
    } else if (by_value) {
        hotloop::cfg_step_by_value(s);
    } else {
        hotloop::cfg_step(s);
    }
}

// How many values were not finite; on a device that is not known here, but written to `bad`.
int64_t rgb_pack(py::handle in, py::handle out, py::handle bad, uintptr_t stream, bool unproved) {
    Arrays arrays("rgb.pack");
    const hotloop::RgbPack op{arrays.read(in, "images"), arrays.write(out, "out"), arrays.write(bad, "bad")};
    int64_t count = 0;
    run(arrays, op, [&](const auto&) { count = hotloop::rgb_pack(op); }, HOTLOOP_ON_CUDA(&hotloop::rgb_pack_cuda), stream, unproved);
    return count;
}

void rgb_unpack(py::handle in, py::handle out, const std::string& filter, uintptr_t stream, bool unproved,
                bool by_value) {
    Arrays arrays("rgb.unpack");
    const auto kind = filter == "area"     ? hotloop::Filter::area
                      : filter == "linear" ? hotloop::Filter::linear
                                           : hotloop::Filter::fit;
    const hotloop::RgbUnpack op{arrays.read(in, "pixels"), arrays.write(out, "out"), kind};
    run(arrays, op, by_value ? &hotloop::rgb_unpack_by_value : &hotloop::rgb_unpack,
        HOTLOOP_ON_CUDA(&hotloop::rgb_unpack_cuda), stream, unproved);
}

// The same values at a larger shape: an axis of size 1, or one that is missing in front, is repeated.
Tensor broadcast(const Tensor& t, std::initializer_list<int64_t> shape) {
    if (!t) return t;
    Tensor view = t;
    view.ndim = static_cast<int>(shape.size());
    const int added = view.ndim - t.ndim;
    for (int i = 0; i < view.ndim; ++i) {
        view.shape[i] = shape.begin()[i];
        view.stride[i] = i < added || t.shape[i - added] == 1 ? 0 : t.stride[i - added];
    }
    return view;
}

const Tensor& dense_rows(const Arrays& arrays, const Tensor& t, const char* name) {
    const int64_t stride = t.stride[t.ndim - 1];
    if (stride != 1)
        throw Error(arrays.op(), std::string(name) + " must be contiguous over its last axis",
                    "a stride of " + std::to_string(stride));
    return t;
}

// segments: of (k, v, weight).
void attention(py::handle q, py::handle k, py::handle v, py::handle mask, float scale, const py::list& segments,
               py::handle out, uintptr_t stream, bool unproved) {
    Arrays arrays("attention");
    const auto read = [&](py::handle array, const char* name) {
        return dense_rows(arrays, arrays.read(array, name), name);
    };
    hotloop::Attention op{};
    op.q = read(q, "q");
    op.k = read(k, "k");
    op.v = read(v, "v");
    op.out = dense_rows(arrays, arrays.write(out, "out"), "out");
    const int64_t B = op.q.shape[0], Tq = op.q.shape[1], H = op.q.shape[2];
    op.mask = broadcast(arrays.read(mask, "mask"), {B, H, Tq, op.k.shape[1]});
    op.scale = scale;
    for (const py::handle segment : segments) {
        const auto [segment_k, segment_v, weight] = segment.cast<std::tuple<py::object, py::object, py::object>>();
        op.segment[op.segments++] = {read(segment_k, "a segment's k"), read(segment_v, "a segment's v"),
                                     broadcast(arrays.read(weight, "a segment's weight"), {B, H, Tq})};
    }
    run(arrays, op, &hotloop::attention, HOTLOOP_ON_CUDA(&hotloop::attention_cuda), stream, unproved);
}

void geglu(py::handle x, py::handle out, uintptr_t stream, bool unproved) {
    Arrays arrays("geglu");
    const hotloop::Geglu op{arrays.read(x, "x"), arrays.write(out, "out")};
    run(arrays, op, &hotloop::geglu, HOTLOOP_ON_CUDA(&hotloop::geglu_cuda), stream, unproved);
}

// [N, h, w, C] -> [N, C, h, w], the same values.
Tensor channels_first(const Tensor& t) {
    Tensor view = t;
    constexpr int axes[] = {0, 3, 1, 2};
    for (int i = 0; i < 4; ++i) {
        view.shape[i] = t.shape[axes[i]];
        view.stride[i] = t.stride[axes[i]];
    }
    return view;
}

void group_norm_silu(py::handle x, py::handle weight, py::handle bias, int groups, float eps, bool silu,
                     bool channels_last, py::handle out, uintptr_t stream, bool unproved) {
    Arrays arrays("group_norm_silu");
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
    // On the caller's device, by the caller's library: freed in the order of its current stream.
    py::object moments;
    if (arrays.on_cuda(unproved)) {
        const int tiles = hotloop::tiles_of(static_cast<int>(op.x.shape[2] * op.x.shape[3]));
        moments = py::module_::import("hotloop_kernels.arrays")
                      .attr("empty")("group_norm_silu", x, py::make_tuple(op.x.shape[0], tiles, groups, 2), "float32");
        op.moments = arrays.write(moments, "moments");
    }
    run(arrays, op, &hotloop::group_norm_silu, HOTLOOP_ON_CUDA(&hotloop::group_norm_silu_cuda), stream, unproved);
}

// The CUDA group norm's index maps, for the tests: (begin, end) of every tile; (pack, line) of every thread at work.
std::vector<std::pair<int, int>> group_norm_tiles(int pixels) {
    std::vector<std::pair<int, int>> ranges;
    const int tiles = hotloop::tiles_of(pixels);
    for (int tile = 0; tile < tiles; ++tile) {
        const auto range = hotloop::tile_range(tile, tiles, pixels);
        ranges.emplace_back(range.begin, range.end);
    }
    return ranges;
}
std::vector<std::pair<int, int>> group_norm_threads(int channels, int pack, int block) {
    std::vector<std::pair<int, int>> places;
    const hotloop::PackGrid grid(channels, pack, block);
    for (int thread = 0; thread < grid.threads(); ++thread)
        for (int p = grid.pack(thread); p < grid.packs; p += grid.packs_at_once) places.emplace_back(p, grid.line(thread));
    return places;
}

void layer_norm(py::handle x, py::handle weight, py::handle bias, float eps, py::handle out, uintptr_t stream,
                bool unproved) {
    Arrays arrays("layer_norm");
    hotloop::LayerNorm op{};
    op.x = arrays.read(x, "x");
    op.weight = arrays.read(weight, "weight");
    op.bias = arrays.read(bias, "bias");
    op.out = arrays.write(out, "out");
    op.eps = eps;
    run(arrays, op, &hotloop::layer_norm, HOTLOOP_ON_CUDA(&hotloop::layer_norm_cuda), stream, unproved);
}

// layers: of (field, box).
void warp_blend(const py::list& sources, const py::list& layers, py::handle out, uintptr_t stream, bool unproved,
                bool by_value) {
    Arrays arrays("warp_blend");
    hotloop::WarpBlend op{};
    for (const py::handle source : sources) op.source[op.sources++] = arrays.read(source, "a source");
    for (const py::handle layer : layers) {
        const auto [field, box] = layer.cast<std::tuple<py::object, std::array<double, 4>>>();
        auto& to = op.layer[op.layers++];
        to.field = arrays.read(field, "a field");
        std::copy(box.begin(), box.end(), to.box);
    }
    op.out = arrays.write(out, "out");
    run(arrays, op, by_value ? &hotloop::warp_blend_by_value : &hotloop::warp_blend,
        HOTLOOP_ON_CUDA(&hotloop::warp_blend_cuda), stream, unproved);
}

void formula(py::handle steps, py::handle constants, py::handle given, py::handle columns, py::handle rows,
             py::handle out, int registers) {
    Arrays arrays("formula");
    hotloop::Formula op{};
    op.steps = dense(arrays, arrays.read(steps, "steps"), "steps", 0);
    op.constants = dense(arrays, arrays.read(constants, "constants"), "constants", 0);
    op.given = dense(arrays, arrays.read(given, "given"), "given", 0);
    op.columns = dense(arrays, arrays.read(columns, "columns"), "columns", 0);
    op.rows = dense(arrays, arrays.read(rows, "rows"), "rows", 0);
    op.out = dense(arrays, arrays.write(out, "out"), "out", 0);
    op.registers = registers;
    py::gil_scoped_release release;
    hotloop::formula(op);
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
    } catch (const Error& error) {
        const py::object type = py::module_::import("hotloop_kernels.checks").attr("KernelError");
        const py::object raised = type(error.op, error.rule, error.got);
        PyErr_SetObject(type.ptr(), raised.ptr());
    }
}

void set_isa(const std::string& name) {
    for (const auto isa : {hotloop::Isa::scalar, hotloop::Isa::avx2, hotloop::Isa::avx512})
        if (name == name_of(isa) && isa <= hotloop::best_isa()) return hotloop::set_isa(isa);
    const std::string best = name_of(hotloop::best_isa());
    throw Error("kernels", "HOTLOOP_ISA must be scalar, avx2 or avx512 and not above this machine's " + best,
                         name);
}

void set_threads(int count) {
    if (count < 1) throw Error("kernels", "the count of threads must be at least 1", std::to_string(count));
    hotloop::set_threads(count);
}

// The architectures that CUDA operators were compiled for, as CMake names them: "80-real 90a-real".
#ifdef HOTLOOP_CUDA
constexpr const char* kCudaArchitectures = HOTLOOP_CUDA;
#else
constexpr const char* kCudaArchitectures = "";
#endif

}  // namespace

PYBIND11_MODULE(_ops, m) {
    m.attr("max_layers") = hotloop::kMaxLayers;
    m.attr("max_segments") = hotloop::kMaxSegments;
    m.attr("max_sources") = hotloop::kMaxSources;
    m.attr("max_states") = hotloop::kMaxStates;
    m.attr("compiler") = compiler();
    m.attr("cuda_architectures") = kCudaArchitectures;
    m.attr("best_isa") = name_of(hotloop::best_isa());
    m.def("isa", [] { return name_of(hotloop::isa()); });
    m.def("set_isa", &set_isa);
    m.def("threads", &hotloop::threads);
    m.def("set_threads", &set_threads);
    m.def("set_proved", &hotloop::set_proved);
    py::register_local_exception_translator(&raise);
    m.def("attention", &attention);
#ifdef HOTLOOP_CUDA
    m.def("attention_use_wgmma", &hotloop::attention_use_wgmma);
#endif
    m.def("cfg_step", &cfg_step);
    m.def("geglu", &geglu);
    m.def("group_norm_silu", &group_norm_silu);
    m.def("group_norm_threads", &group_norm_threads);
    m.def("group_norm_tiles", &group_norm_tiles);
    m.def("formula", &formula);
    m.def("layer_norm", &layer_norm);
    m.def("rgb_pack", &rgb_pack);
    m.def("rgb_unpack", &rgb_unpack);
    m.def("warp_blend", &warp_blend);
}
