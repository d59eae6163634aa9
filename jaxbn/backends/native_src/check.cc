#include "check.h"

namespace jaxbn {
namespace {

const char* const kNames[kSlots] = {"x",          "a",         "residual",
                                    "center",     "slope",     "offset",
                                    "multiplier", "gate_slope", "gate_offset",
                                    "where"};

int sum_type(const Call& call) {
  return int(call.type() == Type::kF64 ? Type::kF64 : Type::kF32);
}

std::string wrong(const char* name, const Array& array, int type, int64_t size) {
  if (array.type != type) return std::string(name) + " has the wrong type";
  if (array.size != size)
    return std::string(name) + " must have " + std::to_string(size) + " elements, got " +
           std::to_string(array.size);
  return "";
}

}  // namespace

Vectors Call::vectors() const {
  return {data(kCenter),     data(kSlope),     data(kOffset),
          data(kMultiplier), data(kGateSlope), data(kGateOffset)};
}

Where Call::where() const {
  return {static_cast<const uint8_t*>(data(kWhere)), where_batch, where_repeat};
}

std::string wrong_operands(const Call& call, std::initializer_list<Slot> needed) {
  const Shape& shape = call.shape;
  if (shape.batch < 0 || shape.outer < 0 || shape.channels < 0 || shape.inner < 0)
    return "sizes must not be negative";
  if (call.activation < 0 || call.activation > int(Activation::kClamp))
    return "unknown activation";
  for (Slot slot : needed)
    if (!call.operands[slot].present) return std::string(kNames[slot]) + " is missing";
  const int type = call.operands[kX].type;
  if (type < 0 || type > int(Type::kF64)) return "x must be floating point";
  for (int slot = 0; slot < kSlots; ++slot) {
    const Array& array = call.operands[slot];
    if (!array.present) continue;
    std::string error;
    if (slot <= kResidual) {
      error = wrong(kNames[slot], array, type, shape.size());
    } else if (slot < kWhere) {
      error = wrong(kNames[slot], array, sum_type(call), shape.batch * shape.channels);
    } else {
      if (call.where_repeat < 1 || (call.where_batch != 1 && call.where_batch != shape.batch))
        return "where has the wrong shape";
      const int64_t each = (shape.outer + call.where_repeat - 1) / call.where_repeat;
      error = wrong(kNames[slot], array, kBytes, call.where_batch * each);
    }
    if (!error.empty()) return error;
  }
  return "";
}

std::string wrong_result(const Call& call, const Array& result, bool full) {
  const Shape& shape = call.shape;
  if (full) return wrong("the result", result, int(call.type()), shape.size());
  return wrong("the result", result, sum_type(call), shape.batch * shape.channels);
}

}  // namespace jaxbn
