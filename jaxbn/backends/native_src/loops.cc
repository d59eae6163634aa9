// Compiled once per instruction set, with JAXBN_ISA the name of the table and
// JAXBN_BYTES the size of a vector. Nothing but the table leaves this file.

#include "loops.h"

#ifndef JAXBN_ISA
#define JAXBN_ISA baseline
#define JAXBN_BYTES 16
#endif

#include "vectors.h"

#define JAXBN_JOIN_(a, b) a##b
#define JAXBN_JOIN(a, b) JAXBN_JOIN_(a, b)
#define JAXBN_TEXT_(a) #a
#define JAXBN_TEXT(a) JAXBN_TEXT_(a)

namespace {

using jaxbn::Activation;
using jaxbn::Form;
using jaxbn::Map;
using jaxbn::Partial;
using jaxbn::Reduction;
using jaxbn::Rows;
using jaxbn::Runs;
using jaxbn::Type;
using jaxbn::Vectors;

constexpr int kReduced = 4;      // rows summed in registers before the sums are stored
constexpr int kBlock = 128;      // rows summed in the type of sums; then double
constexpr int kRunBlock = 4096;  // the same along a run

// ---- elementwise -----------------------------------------------------------------

template <Activation kActivation, class V, class A>
JAXBN_INLINE V activate(V z, A high) {
  if constexpr (kActivation == Activation::kNone) return z;
  const V zero{}, bound = zero + high;
  const V above = z < zero ? zero : z;
  return above > bound ? bound : above;
}

// value * activation'(g)
template <Activation kActivation, class V, class A>
JAXBN_INLINE V gated(V value, V g, A high) {
  if constexpr (kActivation == Activation::kNone) return value;
  const V zero{}, bound = zero + high;
  const V above = g > zero ? value : zero;
  return g >= bound ? zero : above;
}

template <Activation kActivation, class A>
JAXBN_INLINE Pair<A> activate(Pair<A> z, A high) {
  return {activate<kActivation>(z.lo, high), activate<kActivation>(z.hi, high)};
}

template <Activation kActivation, class A>
JAXBN_INLINE Pair<A> gated(Pair<A> value, Pair<A> g, A high) {
  return {gated<kActivation>(value.lo, g.lo, high), gated<kActivation>(value.hi, g.hi, high)};
}

// What of a Map is known when it is compiled. Where the mask leaves a row or a run out,
// z = 0: only the other operand passes.
template <Form kForm_, Activation kActivation_, bool kSecond_, bool kCounts_ = true> struct Kind {
  using LeftOut = Kind<kForm_, kActivation_, kSecond_, false>;
  static constexpr Form kForm = kForm_;
  static constexpr Activation kActivation = kActivation_;
  static constexpr bool kSecond = kSecond_;  // kGate: residual present; else: a present
  static constexpr bool kReadsA = kForm == Form::kGate || kForm == Form::kBack || kSecond;
  static constexpr bool kReadsResidual = kForm == Form::kGate && kSecond;
  static constexpr bool kAffine = kForm != Form::kGate && kCounts_;
  static constexpr bool kGates = kForm != Form::kExpand;
  static constexpr bool kScales = kForm != Form::kGate && kReadsA;
};

template <class V> struct Channel {
  V center, slope, offset, multiplier, gate_slope, gate_offset;
};

template <class K, class V, class A>
JAXBN_INLINE V mapped(V x, V a, V residual, const Channel<V>& by, A high) {
  const V distance = x - by.center;
  V g{}, z{};
  if constexpr (K::kGates) g = distance * by.gate_slope + by.gate_offset;
  if constexpr (K::kReadsResidual) g = g + residual;
  if constexpr (K::kAffine) z = distance * by.slope + by.offset;
  if constexpr (K::kForm == Form::kExpand) {
    if constexpr (K::kReadsA) z = z + a * by.multiplier;
    return activate<K::kActivation>(z, high);
  } else if constexpr (K::kForm == Form::kGate) {
    return gated<K::kActivation>(a, g, high);
  } else {
    return gated<K::kActivation>(a, g, high) * by.multiplier + z;
  }
}

template <class K, class A>
JAXBN_INLINE Channel<Pair<A>> channels_at(const Vectors& v, int64_t unit) {
  Channel<Pair<A>> by{};
  by.center = arranged<A>(v.center, unit);
  if constexpr (K::kAffine) by.slope = arranged<A>(v.slope, unit);
  if constexpr (K::kAffine) by.offset = arranged<A>(v.offset, unit);
  if constexpr (K::kScales) by.multiplier = arranged<A>(v.multiplier, unit);
  if constexpr (K::kGates) by.gate_slope = arranged<A>(v.gate_slope, unit);
  if constexpr (K::kGates) by.gate_offset = arranged<A>(v.gate_offset, unit);
  return by;
}

template <class K, class A>
JAXBN_INLINE Pair<A> mapped(Pair<A> x, Pair<A> a, Pair<A> residual,
                            const Channel<Pair<A>>& by, A high) {
  using V = typename Vector<A>::Type;
  const Channel<V> lo{by.center.lo, by.slope.lo, by.offset.lo,
                      by.multiplier.lo, by.gate_slope.lo, by.gate_offset.lo};
  const Channel<V> hi{by.center.hi, by.slope.hi, by.offset.hi,
                      by.multiplier.hi, by.gate_slope.hi, by.gate_offset.hi};
  return {mapped<K>(x.lo, a.lo, residual.lo, lo, high),
          mapped<K>(x.hi, a.hi, residual.hi, hi, high)};
}

template <class T, class K> struct Pointers {
  const T *x, *a, *residual;
  T* y;

  JAXBN_INLINE Pointers at(int64_t offset) const {
    return {x + offset, K::kReadsA ? a + offset : nullptr,
            K::kReadsResidual ? residual + offset : nullptr, y + offset};
  }
};

template <class T, class K> JAXBN_INLINE Pointers<T, K> pointers(const Map& map) {
  return {static_cast<const T*>(map.x), static_cast<const T*>(map.a),
          static_cast<const T*>(map.residual), static_cast<T*>(map.y)};
}

template <class T, class K, bool kStream>
JAXBN_INLINE void map_unit(const Pointers<T, K>& p, const Channel<Pair<typename Access<T>::A>>& by,
                           typename Access<T>::A high) {
  Pair<typename Access<T>::A> a{}, residual{};
  if constexpr (K::kReadsA) a = Access<T>::read(p.a);
  if constexpr (K::kReadsResidual) residual = Access<T>::read(p.residual);
  Access<T>::template write<kStream>(p.y, mapped<K>(Access<T>::read(p.x), a, residual, by, high));
}

template <class T, class K>
JAXBN_INLINE void map_some(const Pointers<T, K>& p, const Channel<Pair<typename Access<T>::A>>& by,
                           typename Access<T>::A high, int64_t n) {
  Pair<typename Access<T>::A> a{}, residual{};
  if constexpr (K::kReadsA) a = read_some(p.a, n);
  if constexpr (K::kReadsResidual) residual = read_some(p.residual, n);
  write_some(p.y, mapped<K>(read_some(p.x, n), a, residual, by, high), n);
}

// One row at a time: several rows side by side would save loads of the vectors, which the
// first cache gives for nothing, and cost streams, which the memory is slow at.
template <class T, class K, bool kStream>
JAXBN_INLINE void map_row(const Map& map, const Pointers<T, K>& p, int64_t width) {
  using A = typename Access<T>::A;
  constexpr int unit = Access<T>::kUnit;
  const A high = A(map.high);
  const int64_t units = width / unit, rest = width % unit;
  for (int64_t u = 0; u < units; ++u)
    map_unit<T, K, kStream>(p.at(u * unit), channels_at<K, A>(map.vectors, u), high);
  if (rest)
    map_some<T, K>(p.at(units * unit), channels_at<K, A>(map.vectors, units), high, rest);
}

template <class T, class K, bool kStream> void map_rows_as(const Map& map, const Rows& rows) {
  using LeftOut = typename K::LeftOut;
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t at = r * rows.stride;
    if (rows.mask.counts(rows.first + r))
      map_row<T, K, kStream>(map, pointers<T, K>(map).at(at), rows.width);
    else
      map_row<T, LeftOut, kStream>(map, pointers<T, LeftOut>(map).at(at), rows.width);
  }
  if constexpr (kStream) finish_streams();
}

template <class T, class K, bool kStream> void map_run(const Map& map, const Runs& runs) {
  using A = typename Access<T>::A;
  constexpr int unit = Access<T>::kUnit;
  const A high = A(map.high);
  const auto base = pointers<T, K>(map);
  const auto value = [](const void* p, int64_t c) {
    return all_of<A>(p == nullptr ? A(0) : plain_nan(static_cast<const A*>(p)[c]));
  };
  const Vectors& v = map.vectors;
  for (int64_t c = 0; c < runs.channels; ++c) {
    const Channel<Pair<A>> by{value(v.center, c),     value(v.slope, c),
                              value(v.offset, c),     value(v.multiplier, c),
                              value(v.gate_slope, c), value(v.gate_offset, c)};
    const auto p = base.at(c * runs.length);
    int64_t i = 0;
    if constexpr (kStream) {
      // Up to the first aligned address.
      const int64_t past = reinterpret_cast<uintptr_t>(p.y) % JAXBN_BYTES / sizeof(T);
      const int64_t head = past == 0 ? 0 : JAXBN_BYTES / int64_t(sizeof(T)) - past;
      i = head < runs.length ? head : runs.length;
      for (int64_t j = 0; j < i; j += unit)
        map_some<T, K>(p.at(j), by, high, i - j < unit ? i - j : unit);
    }
    for (; i + unit <= runs.length; i += unit) map_unit<T, K, kStream>(p.at(i), by, high);
    if (i < runs.length) map_some<T, K>(p.at(i), by, high, runs.length - i);
  }
  if constexpr (kStream) finish_streams();
}

// ---- reductions ------------------------------------------------------------------

// Merges n values whose sums about `pivot` are s1, s2 into (mean, m2) of earlier values.
struct Merge {
  double inverse, share, weight;

  JAXBN_INLINE Merge(double count, double n)
      : inverse(1 / n), share(n / (count + n)), weight(count * share) {}

  JAXBN_INLINE void operator()(double pivot, double s1, double s2, double& mean,
                               double& m2) const {
    const double within = s2 - s1 * s1 * inverse;
    const double distance = pivot - mean + s1 * inverse;
    mean += distance * share;
    m2 += (within < 0 ? 0 : within) + distance * distance * weight;
  }
};

// Collects the rows that count, at most kBlock of them, and returns how many.
JAXBN_INLINE int collect(const Rows& rows, int64_t& next, int64_t* offsets) {
  int n = 0;
  for (; next < rows.count && n < kBlock; ++next)
    if (rows.mask.counts(rows.first + next)) offsets[n++] = next * rows.stride;
  return n;
}

// Two sums over a row: what is added for one unit is `f(unit, offset)`, a pair of Pairs.
template <class A> struct Terms {
  Pair<A> first, second;
};

template <int kRows, class A, class F>
JAXBN_INLINE void add_rows(A* s1, A* s2, int64_t unit_index, const int64_t* offsets, const F& f) {
  Terms<A> sum = f(offsets[0]);  // apart from earlier rows: short sums round less
  for (int r = 1; r < kRows; ++r) {
    const Terms<A> term = f(offsets[r]);
    sum.first = sum.first + term.first;
    sum.second = sum.second + term.second;
  }
  arrange_to(s1, unit_index, arranged<A>(s1, unit_index) + sum.first);
  arrange_to(s2, unit_index, arranged<A>(s2, unit_index) + sum.second);
}

template <class A, class F>
JAXBN_INLINE void add_block(A* s1, A* s2, int64_t units, const int64_t* offsets, int n,
                            const F& term_at) {
  int r = 0;
  for (; r + kReduced <= n; r += kReduced)
    for (int64_t u = 0; u < units; ++u) add_rows<kReduced>(s1, s2, u, offsets + r, term_at(u));
  for (; r < n; ++r)
    for (int64_t u = 0; u < units; ++u) add_rows<1>(s1, s2, u, offsets + r, term_at(u));
}

template <class T> JAXBN_INLINE typename Access<T>::A first_value(const T* p) {
  using A = typename Access<T>::A;
  A all[Access<T>::kUnit];
  arrange_to(all, 0, read_some(p, 1));
  return all[0];
}

// Squares of some values may not fit the type of sums: they are summed again in double.
template <class T> double squared(const T* value, double pivot) {
  const double distance = double(first_value(value)) - pivot;
  return distance * distance;
}

template <class A> JAXBN_INLINE double across(Pair<A> v) {
  double sum = 0;
  for (int i = 0; i < int(JAXBN_BYTES / sizeof(A)); ++i) sum += double(v.lo[i]) + double(v.hi[i]);
  return sum;
}

// `n` is a multiple of the unit.
template <class A> JAXBN_INLINE bool all_finite(const A* values, int64_t n) {
  Pair<A> zero{};
  for (int64_t u = 0; u * Access<A>::kUnit < n; ++u) {
    const Pair<A> some = arranged<A>(values, u);
    zero = zero + (some - some);
  }
  return across(zero) == 0;
}

// Puts arranged sums in the order of the channels.
template <class T> JAXBN_INLINE void restore(double* sums, int64_t n) {
  constexpr int unit = Access<T>::kUnit, stride = Access<T>::kStride, part = unit / stride;
  if constexpr (stride > 1) {
    for (; n > 0; n -= unit, sums += unit) {
      double some[unit];
      memcpy(some, sums, sizeof some);
      for (int i = 0; i < part; ++i)
        for (int s = 0; s < stride; ++s) sums[i * stride + s] = some[s * part + i];
    }
  }
}

template <class T>
void moments_rows_as(const Reduction& reduction, const Rows& rows, void* work, Partial* out) {
  using A = typename Access<T>::A;
  constexpr int unit = Access<T>::kUnit;
  const T* x = static_cast<const T*>(reduction.x);
  const int64_t units = rows.width / unit, rest = rows.width % unit;
  const int64_t padded = (units + (rest != 0)) * unit;
  A *pivot = static_cast<A*>(work), *s1 = pivot + padded, *s2 = s1 + padded;
  int64_t offsets[kBlock], next = 0;
  while (const int n = collect(rows, next, offsets)) {
    const T* first = x + offsets[0];
    if (out->count == 0) {
      // The mean of a few rows, about the first: one row alone may be far from the mean.
      const int few = n < kReduced ? 1 : kReduced;
      const Pair<A> share = all_of<A>(A(1) / A(few));
      const auto guess = [&](int64_t u, const auto& read) {
        const Pair<A> start = read(first + u * unit);
        Pair<A> sum{};
        for (int r = 1; r < few; ++r) sum = sum + (read(x + offsets[r] + u * unit) - start);
        arrange_to(pivot, u, start + sum * share);
      };
      for (int64_t u = 0; u < units; ++u) guess(u, [](const T* p) { return Access<T>::read(p); });
      if (rest) guess(units, [=](const T* p) { return read_some(p, rest); });
    } else {
      for (int64_t c = 0; c < padded; ++c) pivot[c] = A(out->first[c]);
    }
    memset(s1, 0, 2 * padded * sizeof(A));
    add_block(s1, s2, units, offsets, n, [&](int64_t u) {
      const Pair<A> about = arranged<A>(pivot, u);
      return [=](int64_t offset) {
        const Pair<A> d = Access<T>::read(x + offset + u * unit) - about;
        return Terms<A>{d, d * d};
      };
    });
    if (rest) {
      const Pair<A> about = arranged<A>(pivot, units);
      for (int r = 0; r < n; ++r)
        add_rows<1>(s1, s2, units, offsets + r, [=](int64_t offset) {
          const Pair<A> d = read_some(x + offset + units * unit, rest) - about;
          return Terms<A>{d, d * d};
        });
    }
    const Merge merge(double(out->count), n);
    if (all_finite(s2, padded)) {
      for (int64_t c = 0; c < padded; ++c)
        merge(pivot[c], s1[c], s2[c], out->first[c], out->second[c]);
    } else {
      for (int64_t c = 0; c < rows.width; ++c) {
        const int64_t i = place<T>(c);
        double square = 0;
        for (int r = 0; r < n; ++r) square += squared(x + offsets[r] + c, double(pivot[i]));
        merge(pivot[i], s1[i], square, out->first[i], out->second[i]);
      }
    }
    out->count += n;
  }
  restore<T>(out->first, padded);
  restore<T>(out->second, padded);
}

template <class T, Activation kGate>
void sums_rows_as(const Reduction& reduction, const Rows& rows, void* work, Partial* out) {
  using A = typename Access<T>::A;
  using K = Kind<Form::kGate, kGate, false>;
  constexpr int unit = Access<T>::kUnit;
  const T *x = static_cast<const T*>(reduction.x), *a = static_cast<const T*>(reduction.a);
  const A high = A(reduction.high);
  const int64_t units = rows.width / unit, rest = rows.width % unit;
  const int64_t padded = (units + (rest != 0)) * unit;
  A *s1 = static_cast<A*>(work), *s2 = s1 + padded;
  const Vectors& v = reduction.vectors;
  const auto by_at = [&](int64_t u) {
    Channel<Pair<A>> by{};
    by.center = arranged<A>(v.center, u);
    if constexpr (kGate != Activation::kNone) by.gate_slope = arranged<A>(v.gate_slope, u);
    if constexpr (kGate != Activation::kNone) by.gate_offset = arranged<A>(v.gate_offset, u);
    return by;
  };
  const auto term = [=](Pair<A> values, Pair<A> points, const Channel<Pair<A>>& by) {
    if constexpr (kGate != Activation::kNone)
      values = mapped<K>(points, values, Pair<A>{}, by, high);
    return Terms<A>{values, values * (points - by.center)};
  };
  int64_t offsets[kBlock], next = 0;
  while (const int n = collect(rows, next, offsets)) {
    memset(s1, 0, 2 * padded * sizeof(A));
    add_block(s1, s2, units, offsets, n, [&](int64_t u) {
      const auto by = by_at(u);
      return [=](int64_t offset) {
        const int64_t at = offset + u * unit;
        return term(Access<T>::read(a + at), Access<T>::read(x + at), by);
      };
    });
    if (rest) {
      const auto by = by_at(units);
      for (int r = 0; r < n; ++r)
        add_rows<1>(s1, s2, units, offsets + r, [=](int64_t offset) {
          const int64_t at = offset + units * unit;
          return term(read_some(a + at, rest), read_some(x + at, rest), by);
        });
    }
    for (int64_t c = 0; c < padded; ++c) {
      out->first[c] += double(s1[c]);
      out->second[c] += double(s2[c]);
    }
    out->count += n;
  }
  restore<T>(out->first, padded);
  restore<T>(out->second, padded);
}

// Two sums along a run in blocks: `term(i)` are those of a whole unit, `some(i, n)` of the
// first n elements of one, and `flush(s1, s2, n)` takes the sums of n elements.
template <class T, class Term, class Some, class Flush>
JAXBN_INLINE void add_run(int64_t length, const Term& term, const Some& some,
                          const Flush& flush) {
  using A = typename Access<T>::A;
  constexpr int kWays = 4, unit = Access<T>::kUnit;
  for (int64_t begin = 0; begin < length; begin += kRunBlock) {
    const int64_t left = length - begin, n = left < kRunBlock ? left : kRunBlock;
    Terms<A> sums[kWays] = {};
    int64_t i = 0;
    const auto add = [&](int way, const Terms<A>& t) {
      sums[way].first = sums[way].first + t.first;
      sums[way].second = sums[way].second + t.second;
    };
    for (; i + kWays * unit <= n; i += kWays * unit)
      for (int way = 0; way < kWays; ++way) add(way, term(begin + i + way * unit));
    for (; i + unit <= n; i += unit) add(0, term(begin + i));
    double s1 = across((sums[0].first + sums[1].first) + (sums[2].first + sums[3].first));
    double s2 = across((sums[0].second + sums[1].second) + (sums[2].second + sums[3].second));
    if (i < n) {
      const Terms<A> t = some(begin + i, n - i);
      A first[unit], second[unit];
      arrange_to(first, 0, t.first);
      arrange_to(second, 0, t.second);
      for (int64_t j = 0; j < n - i; ++j) {
        s1 += double(first[place<T>(j)]);
        s2 += double(second[place<T>(j)]);
      }
    }
    flush(s1, s2, double(n));
  }
}

template <class T> void moments_runs_as(const Reduction& reduction, const Runs& runs, Partial* out) {
  using A = typename Access<T>::A;
  const int64_t before = out->count;
  for (int64_t c = 0; c < runs.channels; ++c) {
    const T* x = static_cast<const T*>(reduction.x) + c * runs.length;
    double mean = out->first[c], m2 = out->second[c];
    int64_t count = before;
    A pivot = count == 0 ? first_value(x) : A(mean);
    const auto square = [&](Pair<A> values) {
      const Pair<A> d = values - all_of(pivot);
      return Terms<A>{d, d * d};
    };
    add_run<T>(
        runs.length, [&](int64_t i) { return square(Access<T>::read(x + i)); },
        [&](int64_t i, int64_t n) { return square(read_some(x + i, n)); },
        [&](double s1, double s2, double n) {
          if (s2 - s2 != 0) {
            s2 = 0;
            for (int64_t i = 0; i < int64_t(n); ++i) s2 += squared(x + (count - before) + i, pivot);
          }
          Merge(double(count), n)(double(pivot), s1, s2, mean, m2);
          count += int64_t(n);
          pivot = A(mean);
        });
    out->first[c] = mean;
    out->second[c] = m2;
  }
  out->count = before + runs.length;
}

template <class T, Activation kGate>
void sums_runs_as(const Reduction& reduction, const Runs& runs, Partial* out) {
  using A = typename Access<T>::A;
  using K = Kind<Form::kGate, kGate, false>;
  const A high = A(reduction.high);
  const Vectors& v = reduction.vectors;
  for (int64_t c = 0; c < runs.channels; ++c) {
    const T* x = static_cast<const T*>(reduction.x) + c * runs.length;
    const T* a = static_cast<const T*>(reduction.a) + c * runs.length;
    Channel<Pair<A>> by{};
    by.center = all_of(static_cast<const A*>(v.center)[c]);
    if constexpr (kGate != Activation::kNone) {
      by.gate_slope = all_of(static_cast<const A*>(v.gate_slope)[c]);
      by.gate_offset = all_of(static_cast<const A*>(v.gate_offset)[c]);
    }
    const auto term = [&](Pair<A> values, Pair<A> points) {
      if constexpr (kGate != Activation::kNone)
        values = mapped<K>(points, values, Pair<A>{}, by, high);
      return Terms<A>{values, values * (points - by.center)};
    };
    add_run<T>(
        runs.length,
        [&](int64_t i) { return term(Access<T>::read(a + i), Access<T>::read(x + i)); },
        [&](int64_t i, int64_t n) { return term(read_some(a + i, n), read_some(x + i, n)); },
        [&](double s1, double s2, double) {
          out->first[c] += s1;
          out->second[c] += s2;
        });
  }
  out->count += runs.length;
}

// ---- from run-time values to instances ----------------------------------------------

template <class T> struct Tag { using Value = T; };

template <class F> JAXBN_INLINE void with_type(Type type, const F& f) {
  switch (type) {
    case Type::kF16: return f(Tag<f16>{});
    case Type::kBF16: return f(Tag<bf16>{});
    case Type::kF32: return f(Tag<float>{});
    case Type::kF64: return f(Tag<double>{});
  }
}

template <Activation k> struct Constant { static constexpr Activation value = k; };

template <class F> JAXBN_INLINE void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kNone: return f(Constant<Activation::kNone>{});
    case Activation::kClamp: return f(Constant<Activation::kClamp>{});
  }
}

template <class F> JAXBN_INLINE void with_kind(const Map& map, const F& f) {
  with_activation(map.activation, [&](auto activation) {
    constexpr Activation k = decltype(activation)::value;
    if (map.form == Form::kExpand)
      return map.a ? f(Kind<Form::kExpand, k, true>{}) : f(Kind<Form::kExpand, k, false>{});
    if constexpr (k != Activation::kNone) {
      if (map.form == Form::kBack) return f(Kind<Form::kBack, k, true>{});
      return map.residual ? f(Kind<Form::kGate, k, true>{}) : f(Kind<Form::kGate, k, false>{});
    }
  });
}

int64_t unit(Type type) {
  return type == Type::kF64 ? Access<double>::kUnit : Access<float>::kUnit;
}

void arrange(Type type, const void* from, int64_t n, void* to) {
  with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::Value;
    using A = typename Access<T>::A;
    constexpr int unit = Access<T>::kUnit, stride = Access<T>::kStride, part = unit / stride;
    const A* source = static_cast<const A*>(from);
    A* target = static_cast<A*>(to);
    for (; n >= unit; n -= unit, source += unit, target += unit)
      for (int s = 0; s < stride; ++s)
        for (int i = 0; i < part; ++i) target[s * part + i] = plain_nan(source[i * stride + s]);
    if (n == 0) return;
    for (int64_t c = 0; c < unit; ++c) target[place<T>(c)] = c < n ? plain_nan(source[c]) : A(0);
  });
}

void moments_rows(const Reduction& reduction, const Rows& rows, void* work, Partial* out) {
  with_type(reduction.type, [&](auto tag) {
    moments_rows_as<typename decltype(tag)::Value>(reduction, rows, work, out);
  });
}

void sums_rows(const Reduction& reduction, const Rows& rows, void* work, Partial* out) {
  with_type(reduction.type, [&](auto tag) {
    with_activation(reduction.gate, [&](auto gate) {
      sums_rows_as<typename decltype(tag)::Value, decltype(gate)::value>(reduction, rows, work, out);
    });
  });
}

void moments_runs(const Reduction& reduction, const Runs& runs, Partial* out) {
  with_type(reduction.type, [&](auto tag) {
    moments_runs_as<typename decltype(tag)::Value>(reduction, runs, out);
  });
}

void sums_runs(const Reduction& reduction, const Runs& runs, Partial* out) {
  with_type(reduction.type, [&](auto tag) {
    with_activation(reduction.gate, [&](auto gate) {
      sums_runs_as<typename decltype(tag)::Value, decltype(gate)::value>(reduction, runs, out);
    });
  });
}

JAXBN_INLINE bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % JAXBN_BYTES == 0;
}

void map_rows(const Map& map, const Rows& rows) {
  with_type(map.type, [&](auto tag) {
    using T = typename decltype(tag)::Value;
    const bool stream = map.stream && is_aligned(map.y) && rows.stride * sizeof(T) % JAXBN_BYTES == 0;
    with_kind(map, [&](auto kind) {
      using K = decltype(kind);
      stream ? map_rows_as<T, K, true>(map, rows) : map_rows_as<T, K, false>(map, rows);
    });
  });
}

void map_runs(const Map& map, const Runs& runs) {
  with_type(map.type, [&](auto tag) {
    using T = typename decltype(tag)::Value;
    const bool stream = map.stream && runs.length * sizeof(T) >= 16 * JAXBN_BYTES &&
                        reinterpret_cast<uintptr_t>(map.y) % sizeof(T) == 0;
    with_kind(map, [&](auto kind) {
      using K = decltype(kind);
      using LeftOut = typename K::LeftOut;
      if (!runs.counts) return map_run<T, LeftOut, false>(map, runs);
      stream ? map_run<T, K, true>(map, runs) : map_run<T, K, false>(map, runs);
    });
  });
}

}  // namespace

namespace jaxbn {

const Loops* JAXBN_JOIN(loops_, JAXBN_ISA)() {
  static constexpr Loops loops{JAXBN_TEXT(JAXBN_ISA), unit,      arrange,
                               moments_rows,          sums_rows, map_rows,
                               moments_runs,          sums_runs, map_runs};
  return &loops;
}

}  // namespace jaxbn
