// Whether buffers fit each other, before any loop touches them. No JAX types.
#pragma once

#include <string>

#include "kernels.h"

namespace jaxbn {

// The operands of all kernels, each at its place; null where absent.
enum Slot : int {
  kX, kA, kResidual, kCenter, kSlope, kOffset, kMultiplier, kGateSlope, kGateOffset, kWhere, kSlots
};

struct Array {
  const void* data = nullptr;
  int type = -1;  // a Type, or kBytes
  int64_t size = 0;
  bool present = false;
};

constexpr int kBytes = 100;

struct Call {
  Array operands[kSlots];
  Shape shape;
  int64_t where_batch, where_repeat;
  int64_t activation;
  double high;

  Type type() const { return static_cast<Type>(operands[kX].type); }
  const void* data(Slot slot) const { return operands[slot].data; }
  Vectors vectors() const;
  Where where() const;
};

// What is wrong with the operands, or nothing. `needed` lists the slots of this kernel that
// must be present.
std::string wrong_operands(const Call& call, std::initializer_list<Slot> needed);

// The same for one result: of the size and type of x if `full`, else a vector of sums.
std::string wrong_result(const Call& call, const Array& result, bool full);

}  // namespace jaxbn
