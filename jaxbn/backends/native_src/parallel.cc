#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

namespace jaxbn {
namespace {

struct Work {
  std::atomic<int64_t> next{0}, done{0};
  int64_t items;
  const std::function<void(int64_t)>* body;  // valid until all items are done

  void run() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      (*body)(i);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

}  // namespace

void parallel_for(Pool* pool, int64_t items, const std::function<void(int64_t)>& body) {
  const int64_t threads = pool == nullptr ? 1 : std::min(pool->threads(), items);
  if (threads <= 1) {
    for (int64_t i = 0; i < items; ++i) body(i);
    return;
  }
  // Shared, because a helper may start after this call has returned.
  auto work = std::make_shared<Work>();
  work->items = items;
  work->body = &body;
  for (int64_t i = 1; i < threads; ++i) pool->schedule([work] { work->run(); });
  work->run();
  for (int spins = 0; work->done.load(std::memory_order_acquire) < items; ++spins)
    if (spins > 1000) std::this_thread::yield();
}

}  // namespace jaxbn
