#include "kernels/standard.h"

namespace moe {
namespace {
using S = double;
constexpr int kTileRows = 2;
#include "kernels/portable.h"
// and then, in its terms,
#include "kernels/all.h"
}  // namespace

extern const Kernels<double> kPortableDouble = table("portable");
}  // namespace moe
