// The kernels of the contract on plain pointers: how the work is cut and put together.
//
// The cut depends on the shape alone, so a result does not depend on the threads.
#pragma once

#include "loops.h"
#include "parallel.h"

namespace jaxbn {

// x has shape [batch, outer, channels, inner], each (batch, channel) its own statistics.
struct Shape {
  int64_t batch, outer, channels, inner;

  int64_t rows() const { return outer * inner; }
  int64_t size() const { return batch * outer * channels * inner; }
};

// Which positions count: byte [b % batch][o / repeat] for position (b, o).
struct Where {
  const uint8_t* data = nullptr;  // null: all
  int64_t batch = 1, repeat = 1;
};

struct Site {
  const Loops* loops;
  Pool* pool;  // or null
};

// The fastest table that this processor can run, or the one named (null: not here).
const Loops* loops_here(const char* name = nullptr);

// `vectors` are plain arrays [batch, channels] in the type of sums.
// The mean is center + delta, the sum of squared distances to it m2 * unit^2.
void moments(const Site&, const Reduction&, const Shape&, const Where&, void* center,
             void* delta, void* m2, void* unit);
void sums(const Site&, const Reduction&, const Shape&, const Where&, void* total, void* moment);
void map(const Site&, const Map&, const Shape&, const Where&);

}  // namespace jaxbn
