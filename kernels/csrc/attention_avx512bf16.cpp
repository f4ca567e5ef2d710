// attention for AVX-512 with bfloat16 dot products. CMakeLists.txt compiles this file, and no other code, for them.
#include "attention_tile.h"

#if defined(__AVX512BF16__)
const hotloop::AttentionKernel hotloop::kAttentionAvx512Bf16 = KernelOf<Bfloat16Pairs>::table();
#endif
