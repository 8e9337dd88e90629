#include "kernels/standard.h"

namespace moe {
namespace {
using S = double;
constexpr int kTileRows = 2;
#include "kernels/portable.h"
// and then, in its terms,
#include "kernels/all.h"
}  // namespace

constexpr Kernels<double> kPortableDouble = table();  // a constant: nothing of this file runs when the library is loaded
}  // namespace moe
