// warp_blend for AVX-512. CMakeLists.txt compiles this file, and no other code, for it.
#include "warp_blend_rows.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
const hotloop::WarpBlendKernel hotloop::kWarpBlendAvx512 = WarpBlendRows<Avx512>::table();
#endif
