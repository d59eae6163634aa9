// Loops over memory, one function table per instruction set. No JAX types, no threads.
//
// A *row* holds one value of each of `width` channels side by side; consecutive rows are
// `stride` elements apart. A *run* holds `length` consecutive values of one channel.
// Vectors of the row loops are *arranged*: in the order in which the registers of the
// instruction set hold the elements, padded with zeros to whole units of `unit(type)`.
// Sums leave in double precision whatever the type of the data, in the order of channels.
#pragma once

#include <cstdint>

namespace jaxbn {

enum class Type : int { kF16, kBF16, kF32, kF64 };
// kClamp is min(max(z, 0), high), without the upper bound where `high` is NaN; its
// derivative is one strictly inside.
enum class Activation : int { kNone, kClamp };

// One byte for each `repeat` rows; no data: all rows count.
struct Mask {
  const uint8_t* data;
  int64_t repeat;

  bool counts(int64_t row) const { return data == nullptr || data[row / repeat] != 0; }
};

// Per channel: z = slope * (x - center) + offset, and the factor of the other operand.
// With a gate: g = gate_slope * (x - center) + gate_offset.
struct Vectors {
  const void* center;
  const void* slope;
  const void* offset;
  const void* multiplier;
  const void* gate_slope;
  const void* gate_offset;
};

// What a map computes, with d(.) the derivative of the activation:
//   kExpand: y = activation(z + multiplier * a), `a` optional
//   kGate:   y = a * d(g + residual), `residual` optional
//   kBack:   y = multiplier * a * d(g) + z
enum class Form : int { kExpand, kGate, kBack };

struct Map {
  Type type;
  Form form;
  Activation activation;
  double high;
  const void* x;
  const void* a;         // or null
  const void* residual;  // or null
  void* y;
  Vectors vectors;
  bool stream;  // store past the caches
};

struct Reduction {
  Type type;
  Activation gate;  // of `a`: sums of a * d(g)
  double high;
  const void* x;
  const void* a;  // null for moments
  Vectors vectors;
};

struct Rows {
  int64_t count, stride, width;
  Mask mask;
  int64_t first;  // index of the first row, for the mask
};

struct Runs {
  int64_t channels, length;  // the runs of consecutive channels follow each other
  bool counts;               // whether the mask keeps them; read by maps only
};

// Moments are merged into (count, mean, m2), sums added to (total, moment).
struct Partial {
  int64_t count;
  double* first;   // mean or total
  double* second;  // m2 or moment
};

struct Loops {
  const char* name;
  int64_t (*unit)(Type);
  // Copies `n` values to `to`, arranged and padded. The values have the type of sums.
  void (*arrange)(Type, const void* from, int64_t n, void* to);
  // `work` holds three arranged vectors of doubles; the partial sums are empty at first.
  void (*moments_rows)(const Reduction&, const Rows&, void* work, Partial*);
  void (*sums_rows)(const Reduction&, const Rows&, void* work, Partial*);
  void (*map_rows)(const Map&, const Rows&);
  void (*moments_runs)(const Reduction&, const Runs&, Partial*);
  void (*sums_runs)(const Reduction&, const Runs&, Partial*);
  void (*map_runs)(const Map&, const Runs&);
};

const Loops* loops_baseline();
const Loops* loops_avx2();
const Loops* loops_avx512();

}  // namespace jaxbn
