// warp_blend for AVX2. CMakeLists.txt compiles this file, and no other code, for it.
#include "warp_blend_rows.h"

#if defined(__AVX2__)
const hotloop::WarpBlendKernel hotloop::kWarpBlendAvx2 = WarpBlendRows<Avx2>::table();
#endif
