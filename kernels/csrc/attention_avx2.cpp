// attention for AVX2, FMA and F16C. CMakeLists.txt compiles this file, and no other code, for them.
#include "attention_tile.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
const hotloop::AttentionKernel hotloop::kAttentionAvx2 = KernelOf<SingleFloats<Avx2>>::table();
#endif
