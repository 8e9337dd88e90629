#include "kernels/standard.h"

namespace moe {
namespace {
using S = float;
constexpr int kTileRows = 3;
#include "kernels/portable.h"
// and then, in its terms,
#include "kernels/all.h"
}  // namespace

extern const Kernels<float> kPortable = table("portable");
}  // namespace moe
