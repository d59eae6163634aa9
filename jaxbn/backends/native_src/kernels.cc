#include "kernels.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace jaxbn {
namespace {

constexpr int64_t kTileBytes = 4096;         // of a row reduced together: sums stay in L1
constexpr int64_t kMapTile = 8192;           // channels mapped together
constexpr int64_t kItemBytes = 256 << 10;    // what one item of work reads of x, about
constexpr int64_t kMostItems = 64;           // of one reduction, if its shape allows
constexpr int64_t kLargePage = 2 << 20;
constexpr int64_t kShareOfCache = 8 << 20;   // of a thread, beyond which maps store past it
constexpr int64_t kSerialBytes = 512 << 10;  // below it threads cost more than they save

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t bytes_of(Type type) {
  return type == Type::kF64 ? 8 : type == Type::kF32 ? 4 : 2;
}

// Narrower rows are put side by side up to this width: several rows are summed at a time,
// and the memory follows few long streams better than many short ones.
int64_t tile_of(Type type) { return kTileBytes / bytes_of(type); }

int64_t sum_bytes_of(Type type) { return type == Type::kF64 ? 8 : 4; }

const char* at(const void* p, int64_t offset, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + offset * bytes;
}

char* at(void* p, int64_t offset, int64_t bytes) {
  return static_cast<char*>(p) + offset * bytes;
}

Vectors at(const Vectors& v, int64_t offset, int64_t bytes) {
  return {at(v.center, offset, bytes),     at(v.slope, offset, bytes),
          at(v.offset, offset, bytes),     at(v.multiplier, offset, bytes),
          at(v.gate_slope, offset, bytes), at(v.gate_offset, offset, bytes)};
}

int64_t last_level_cache() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL3_CACHE_SIZE
    const int64_t found = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (found > 0) return found;
#endif
    return int64_t(32) << 20;
  }();
  return bytes;
}

// Asks for large pages where memory has none yet: faults of 4 KB each cost more than a map.
// NumPy does so too, and from this size on. Memory that has its pages stays as it is.
void prefer_large_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < 2 * kLargePage) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), page = kLargePage;
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Memory that is not cleared.
struct Buffer {
  explicit Buffer(int64_t bytes) : owned(new char[bytes + 64]) {
    const auto address = reinterpret_cast<uintptr_t>(owned.get());
    data = owned.get() + (64 - address % 64) % 64;
  }
  std::unique_ptr<char[]> owned;
  char* data;
};

// Rows with few channels seen as fewer, wider rows: `fold` of them side by side.
struct Folded {
  int64_t fold, width, rows, left;  // `left` rows remain

  Folded(const Loops& loops, Type type, const Shape& shape, bool masked) {
    const int64_t unit = loops.unit(type);
    fold = 1;
    if (!masked) {
      while (fold < unit && shape.channels * fold % unit != 0) fold *= 2;
      while (shape.channels * fold * 2 <= tile_of(type)) fold *= 2;
      while (fold > 1 && fold > shape.outer) fold /= 2;
      if (shape.channels * fold > tile_of(type)) fold = 1;
    }
    width = shape.channels * fold;
    rows = shape.outer / fold;
    left = shape.outer % fold;
  }
};

// Every vector repeated `fold` times and arranged, for each batch index.
class Arranged {
 public:
  Arranged(const Loops& loops, Type type, const Shape& shape, int64_t fold, const Vectors& v)
      : bytes_(sum_bytes_of(type)) {
    const int64_t width = shape.channels * fold, unit = loops.unit(type);
    padded_ = ceil_div(width, unit) * unit;
    const void* from[6] = {v.center, v.slope, v.offset, v.multiplier, v.gate_slope, v.gate_offset};
    buffer_ = std::make_unique<Buffer>((6 * shape.batch * padded_ + width) * bytes_);
    char* repeated = at(buffer_->data, 6 * shape.batch * padded_, bytes_);
    for (int i = 0; i < 6; ++i) {
      starts_[i] = from[i] ? at(buffer_->data, i * shape.batch * padded_, bytes_) : nullptr;
      for (int64_t b = 0; from[i] && b < shape.batch; ++b) {
        const char* row = at(from[i], b * shape.channels, bytes_);
        for (int64_t j = 0; j < fold; ++j)
          memcpy(repeated + j * shape.channels * bytes_, row, shape.channels * bytes_);
        loops.arrange(type, repeated, width, at(starts_[i], b * padded_, bytes_));
      }
    }
  }

  Vectors operator()(int64_t b, int64_t channel) const {
    const Vectors all{starts_[0], starts_[1], starts_[2], starts_[3], starts_[4], starts_[5]};
    return at(all, b * padded_ + channel, bytes_);
  }

 private:
  int64_t bytes_, padded_;
  std::unique_ptr<Buffer> buffer_;
  char* starts_[6];
};

// Sums of one item of work: `width` channels from `channel` of batch index `batch`, whose
// channel c is number c % channels of x.
struct Part {
  int64_t batch, channel, width;
  Partial partial;
};

// One array of parts with their memory.
class Parts {
 public:
  Parts(int64_t count, int64_t padded) : memory_(count * 2 * padded * 8), parts(count) {
    memset(memory_.data, 0, count * 2 * padded * 8);
    for (int64_t i = 0; i < count; ++i) {
      double* first = reinterpret_cast<double*>(memory_.data) + 2 * i * padded;
      parts[i].partial = {0, first, first + padded};
    }
  }

 private:
  Buffer memory_;

 public:
  std::vector<Part> parts;
};

Mask mask_of(const Where& where, const Shape& shape, int64_t b) {
  if (where.data == nullptr) return {nullptr, 1};
  return {where.data + b % where.batch * ceil_div(shape.outer, where.repeat), where.repeat};
}

Pool* pool_for(const Site& site, const Shape& shape, Type type) {
  return shape.size() * bytes_of(type) < kSerialBytes ? nullptr : site.pool;
}

// The sums of all parts per (batch, channel) in their order, and the counts.
struct Total {
  std::vector<double> count, first, second;
};

template <class Merge>
Total put_together(std::vector<Part>& parts, const Shape& shape) {
  const int64_t all = shape.batch * shape.channels;
  Total total{std::vector<double>(all), std::vector<double>(all), std::vector<double>(all)};
  // Chunks of the same channels follow each other: merged side by side, without division.
  Part* head = nullptr;
  for (Part& part : parts) {
    if (part.partial.count == 0) continue;
    const bool same = head != nullptr && part.batch == head->batch &&
                      part.channel == head->channel && part.width == head->width;
    if (!same) {
      head = &part;
      continue;
    }
    const Merge by = Merge::of(double(head->partial.count), double(part.partial.count));
    double *first = head->partial.first, *second = head->partial.second;
    const int64_t padded = part.partial.second - part.partial.first;
    for (int64_t i = 0; i < padded; ++i)
      by(part.partial.first[i], part.partial.second[i], first[i], second[i]);
    head->partial.count += part.partial.count;
    part.partial.count = 0;
  }
  // What is left: rows that were folded side by side, and the rest that did not fold.
  for (const Part& part : parts) {
    const double count = double(part.partial.count);
    if (count == 0) continue;
    for (int64_t from = 0; from < part.width; from += shape.channels) {
      const int64_t n = std::min(shape.channels, part.width - from);
      const int64_t to = part.batch * shape.channels + part.channel;
      const Merge by = Merge::of(total.count[to], count);
      for (int64_t i = 0; i < n; ++i) {
        by(part.partial.first[from + i], part.partial.second[from + i], total.first[to + i],
           total.second[to + i]);
        total.count[to + i] += count;
      }
    }
  }
  return total;
}

// Adds (mean, m2) of n values to those of `count` others.
struct MergeMoments {
  double share = 0, weight = 0;

  static MergeMoments of(double count, double n) {
    const double share = n / (count + n);
    return {share, count * share};
  }
  void operator()(double mean, double m2, double& all_mean, double& all_m2) const {
    const double distance = mean - all_mean;
    all_mean += distance * share;
    all_m2 += m2 + distance * distance * weight;
  }
};

struct MergeSums {
  static MergeSums of(double, double) { return {}; }
  void operator()(double total, double moment, double& all_total, double& all_moment) const {
    all_total += total;
    all_moment += moment;
  }
};

using RowLoop = void (*)(const Reduction&, const Rows&, void*, Partial*);
using RunLoop = void (*)(const Reduction&, const Runs&, Partial*);

Reduction moved(const Reduction& r, int64_t offset, const Vectors& vectors) {
  const int64_t bytes = bytes_of(r.type);
  return {r.type, r.gate, r.high, at(r.x, offset, bytes), at(r.a, offset, bytes), vectors};
}

// Features last: items are (batch index, tile of channels, chunk of rows).
std::unique_ptr<Parts> reduce_rows(const Site& site, RowLoop loop, const Reduction& reduction,
                                   const Shape& shape, const Where& where) {
  const Loops& loops = *site.loops;
  const Folded folded(loops, reduction.type, shape, where.data != nullptr);
  const Arranged arranged(loops, reduction.type, shape, folded.fold, reduction.vectors);
  const int64_t unit = loops.unit(reduction.type), bytes = bytes_of(reduction.type);
  const int64_t width = std::min(folded.width, tile_of(reduction.type)), tiles = ceil_div(folded.width, width);
  const int64_t most = std::max<int64_t>(1, kMostItems / (shape.batch * tiles));
  const int64_t wanted = std::max<int64_t>(128, kItemBytes / (width * bytes));
  const int64_t chunk = std::max(wanted, ceil_div(folded.rows, most));
  const int64_t chunks = ceil_div(folded.rows, chunk) + (folded.left != 0);
  auto result = std::make_unique<Parts>(shape.batch * tiles * chunks, ceil_div(width, unit) * unit);
  const int64_t per_batch = shape.outer * shape.channels;
  parallel_for(
      pool_for(site, shape, reduction.type), shape.batch * tiles * chunks, [&](int64_t item) {
        alignas(64) char work[3 * 2 * kTileBytes];  // sums are twice as wide as 16 bits
        Part& part = result->parts[item];
        const int64_t b = item / (tiles * chunks), tile = item / chunks % tiles;
        const int64_t first = item % chunks * chunk, channel = tile * width;
        const bool rest = first >= folded.rows;  // the rows that did not fold
        const int64_t row = rest ? folded.rows : first;
        part.batch = b;
        part.channel = channel;
        part.width = rest ? folded.left * shape.channels : std::min(width, folded.width - channel);
        const Rows rows{rest ? 1 : std::min(chunk, folded.rows - first), folded.width, part.width,
                        mask_of(where, shape, b), row};
        const int64_t offset = b * per_batch + row * folded.width + channel;
        loop(moved(reduction, offset, arranged(b, channel)), rows, work, &part.partial);
      });
  return result;
}

// Features in the middle: items are (batch index, channels, chunk of outer positions), or
// pieces of runs that are long.
std::unique_ptr<Parts> reduce_runs(const Site& site, RunLoop loop, const Reduction& reduction,
                                   const Shape& shape, const Where& where) {
  const int64_t bytes = bytes_of(reduction.type), sum_bytes = sum_bytes_of(reduction.type);
  const int64_t piece = std::min(shape.inner, 4 * kItemBytes / bytes);
  const int64_t pieces = ceil_div(shape.inner, piece);
  const int64_t fit = pieces > 1 ? 1 : std::max<int64_t>(1, kItemBytes / (piece * bytes));
  const int64_t width = std::min({shape.channels, fit, tile_of(reduction.type)});
  const int64_t groups = ceil_div(shape.channels, width);
  const int64_t most = std::max<int64_t>(1, kMostItems / (shape.batch * groups * pieces));
  const int64_t chunk = std::max(ceil_div(kItemBytes, width * piece * bytes), ceil_div(shape.outer, most));
  const int64_t chunks = ceil_div(shape.outer, chunk);
  const int64_t items = shape.batch * groups * pieces * chunks;
  auto result = std::make_unique<Parts>(items, width);
  parallel_for(pool_for(site, shape, reduction.type), items, [&](int64_t item) {
    Part& part = result->parts[item];
    const int64_t b = item / (groups * pieces * chunks), channel = item / (pieces * chunks) % groups * width;
    const int64_t begin = item / chunks % pieces * piece, first = item % chunks * chunk;
    part.batch = b;
    part.channel = channel;
    part.width = std::min(width, shape.channels - channel);
    const Runs runs{part.width, std::min(piece, shape.inner - begin), true};
    const Vectors vectors = at(reduction.vectors, b * shape.channels + channel, sum_bytes);
    const Mask mask = mask_of(where, shape, b);
    for (int64_t o = first; o < std::min(first + chunk, shape.outer); ++o) {
      if (!mask.counts(o)) continue;
      const int64_t offset = ((b * shape.outer + o) * shape.channels + channel) * shape.inner + begin;
      loop(moved(reduction, offset, vectors), runs, &part.partial);
    }
  });
  return result;
}

template <class Merge>
Total reduce(const Site& site, RowLoop by_rows, RunLoop by_runs, const Reduction& reduction,
             const Shape& shape, const Where& where) {
  std::vector<Part> none;
  if (shape.size() == 0) return put_together<Merge>(none, shape);
  const auto parts = shape.inner != 1 ? reduce_runs(site, by_runs, reduction, shape, where)
                                      : reduce_rows(site, by_rows, reduction, shape, where);
  return put_together<Merge>(parts->parts, shape);
}

template <class F> void with_sum_type(Type type, const F& f) {
  type == Type::kF64 ? f(double()) : f(float());
}

}  // namespace

const Loops* loops_here(const char* name) {
  const Loops* known[3] = {nullptr, nullptr, loops_baseline()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    known[0] = loops_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    known[1] = loops_avx2();
#endif
  for (const Loops* loops : known)
    if (loops != nullptr && (name == nullptr || strcmp(name, loops->name) == 0)) return loops;
  return nullptr;
}

void moments(const Site& site, const Reduction& reduction, const Shape& shape,
             const Where& where, void* center, void* delta, void* m2, void* unit) {
  const Loops& loops = *site.loops;
  const Total total = reduce<MergeMoments>(site, loops.moments_rows, loops.moments_runs, reduction,
                                           shape, where);
  with_sum_type(reduction.type, [&](auto type) {
    using A = decltype(type);
    const double most = std::numeric_limits<A>::max();
    for (size_t i = 0; i < total.first.size(); ++i) {
      const double mean = total.first[i], square = total.second[i];
      // Where the sum is not finite the center is zero, and delta says so.
      const A near = mean - mean == 0 ? A(mean) : A(0);
      static_cast<A*>(center)[i] = near;
      static_cast<A*>(delta)[i] = A(mean - double(near));
      // Squares that float32 cannot hold are given in a larger unit.
      const bool large = sizeof(A) < sizeof(double) && square > most;
      static_cast<A*>(m2)[i] = A(large ? square * 0x1p-128 : square);
      static_cast<A*>(unit)[i] = A(large ? 0x1p64 : 1);
    }
  });
}

void sums(const Site& site, const Reduction& reduction, const Shape& shape, const Where& where,
          void* sum, void* moment) {
  const Loops& loops = *site.loops;
  const Total total =
      reduce<MergeSums>(site, loops.sums_rows, loops.sums_runs, reduction, shape, where);
  with_sum_type(reduction.type, [&](auto type) {
    using A = decltype(type);
    for (size_t i = 0; i < total.first.size(); ++i) {
      static_cast<A*>(sum)[i] = A(total.first[i]);
      static_cast<A*>(moment)[i] = A(total.second[i]);
    }
  });
}

void map(const Site& site, const Map& map, const Shape& shape, const Where& where) {
  if (shape.size() == 0) return;
  const Loops& loops = *site.loops;
  const int64_t bytes = bytes_of(map.type), arrays = 2 + (map.a != nullptr) + (map.residual != nullptr);
  prefer_large_pages(map.y, shape.size() * bytes);
  Map base = map;
  Pool* pool = pool_for(site, shape, map.type);
  // What does not fit beside other data is not read from the cache anyway. A processor
  // shares its cache with others, also of other machines.
  const int64_t threads = pool == nullptr ? 1 : pool->threads();
  base.stream = shape.size() * bytes * arrays > std::min(last_level_cache() / 2, threads * kShareOfCache);
  const auto moved = [&](int64_t offset, const Vectors& vectors) {
    Map one = base;
    one.x = at(map.x, offset, bytes);
    one.a = at(map.a, offset, bytes);
    one.residual = at(map.residual, offset, bytes);
    one.y = at(map.y, offset, bytes);
    one.vectors = vectors;
    return one;
  };
  // Last items first: what a reduction has read last is still in the cache.
  if (shape.inner != 1) {
    const int64_t run = shape.inner * bytes;
    const int64_t width = std::min(shape.channels, std::max<int64_t>(1, kItemBytes / run));
    const int64_t groups = ceil_div(shape.channels, width), items = shape.batch * shape.outer * groups;
    parallel_for(pool, items, [&](int64_t i) {
      const int64_t item = items - 1 - i, o = item / groups, channel = item % groups * width;
      const int64_t b = o / shape.outer;
      const Runs runs{std::min(width, shape.channels - channel), shape.inner,
                      mask_of(where, shape, b).counts(o % shape.outer)};
      loops.map_runs(moved((o * shape.channels + channel) * shape.inner,
                           at(map.vectors, b * shape.channels + channel, sum_bytes_of(map.type))),
                     runs);
    });
    return;
  }
  const Folded folded(loops, map.type, shape, where.data != nullptr);
  const Arranged arranged(loops, map.type, shape, folded.fold, map.vectors);
  const int64_t width = std::min(folded.width, kMapTile), tiles = ceil_div(folded.width, width);
  const int64_t chunk = std::max<int64_t>(1, kItemBytes / (width * bytes));
  const int64_t chunks = ceil_div(folded.rows, chunk) + (folded.left != 0);
  const int64_t items = shape.batch * chunks * tiles;
  parallel_for(pool, items, [&](int64_t i) {
    const int64_t item = items - 1 - i, b = item / (chunks * tiles);
    const int64_t first = item / tiles % chunks * chunk, channel = item % tiles * width;
    const bool rest = first >= folded.rows;
    const int64_t row = rest ? folded.rows : first;
    const Rows rows{rest ? 1 : std::min(chunk, folded.rows - first), folded.width,
                    rest ? folded.left * shape.channels : std::min(width, folded.width - channel),
                    mask_of(where, shape, b), row};
    const int64_t offset = b * shape.outer * shape.channels + row * folded.width + channel;
    loops.map_rows(moved(offset, arranged(b, channel)), rows);
  });
}

}  // namespace jaxbn
