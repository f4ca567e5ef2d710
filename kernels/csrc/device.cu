// Which GPU a device is.

#include "cuda.h"
#include "ops_cuda.h"

namespace hotloop {

int architecture(int device) {
    int major = 0, minor = 0;
    check("kernels", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check("kernels", cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return 10 * major + minor;
}

}  // namespace hotloop
