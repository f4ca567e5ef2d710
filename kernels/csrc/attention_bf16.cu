// attention by mma.sync for bf16: see attention_mma.h.

#include "attention_launch.h"

namespace hotloop::attention_kernels {

void launch_bf16(const Attention& op, const Params& p, cudaStream_t stream) {
    launch_mma<machine::Bf16>(op, p, stream);
}

}  // namespace hotloop::attention_kernels
