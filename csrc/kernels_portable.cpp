#include "kernels/standard.h"

namespace moe {
namespace {
using S = float;
constexpr int kTileRows = 3;
#include "kernels/portable.h"
// and then, in its terms,
#include "kernels/all.h"
}  // namespace

constexpr Kernels<float> kPortable = table();  // a constant: nothing of this file runs when the library is loaded
}  // namespace moe
