// attention for AVX-512. CMakeLists.txt compiles this file, and no other code, for it.
#include "attention_tile.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
const hotloop::AttentionKernel hotloop::kAttentionAvx512 = KernelOf<SingleFloats<Avx512>>::table();
#endif
