// A loop over independent items on a thread pool that may be busy, small or absent.
#pragma once

#include <cstdint>
#include <functional>

namespace jaxbn {

class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t threads() const = 0;
  // May run the task at once, later on any thread, or after the caller has returned.
  virtual void schedule(std::function<void()> task) = 0;
};

// Runs body(0), ..., body(items - 1), each once, and returns when all are done. The caller
// takes part, and waits only for items that another thread has already begun: a pool that
// never runs a task costs nothing. `pool` may be null.
void parallel_for(Pool* pool, int64_t items, const std::function<void(int64_t)>& body);

}  // namespace jaxbn
