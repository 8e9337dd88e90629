#include "kernels/standard.h"

namespace moe {
namespace {
using S = double;
constexpr int kTileRows = 2;
#include "kernels/portable.h"
#include "kernels/all.h"
}  // namespace

extern const Kernels<double> kPortableDouble = table("portable");
}  // namespace moe
