// The kernels against plain loops in double, for every instruction set of this machine,
// on shapes that break blocking: 0, 1, odd channels, unaligned buffers, many rows. Built
// with a sanitizer it reads and writes guard zones at most once, and then aborts.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace {

using namespace jaxbn;

int failures = 0;

// Threads that start late, in any order, and outlive the call.
class Threads : public Pool {
 public:
  explicit Threads(int n) : n_(n) {}
  ~Threads() override {
    for (auto& thread : started_) thread.join();
  }
  int64_t threads() const override { return n_; }
  void schedule(std::function<void()> task) override { started_.emplace_back(std::move(task)); }

 private:
  int n_;
  std::deque<std::thread> started_;
};

// A pool whose tasks never run before the call has returned.
class Lazy : public Pool {
 public:
  ~Lazy() override {
    for (auto& task : tasks_) task();
  }
  int64_t threads() const override { return 8; }
  void schedule(std::function<void()> task) override { tasks_.push_back(std::move(task)); }

 private:
  std::vector<std::function<void()>> tasks_;
};

float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const float value = exponent == 0    ? std::ldexp(float(fraction), -24)
                      : exponent == 31 ? (fraction ? NAN : INFINITY)
                                       : std::ldexp(float(1024 + fraction), exponent - 25);
  return h >> 15 ? -value : value;
}

// Numbers of a type, on a heap block that ends where they end, at an odd address if asked.
struct Numbers {
  Type type;
  int64_t n;
  int shift;
  std::vector<char> bytes;

  static int size(Type type) { return type == Type::kF64 ? 8 : type == Type::kF32 ? 4 : 2; }

  Numbers(Type type, int64_t n, int shift = 0) : type(type), n(n), shift(shift * size(type)) {
    bytes = std::vector<char>(n * size(type) + this->shift);
  }
  char* data() { return bytes.data() + shift; }
  const char* data() const { return bytes.data() + shift; }
  double operator[](int64_t i) const {
    if (type == Type::kF64) return reinterpret_cast<const double*>(data())[i];
    if (type == Type::kF32) return reinterpret_cast<const float*>(data())[i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(data())[i];
    if (type == Type::kF16) return from_half(bits);
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  void set(int64_t i, double value) {
    const float single = float(value);
    uint32_t wide;
    memcpy(&wide, &single, 4);
    if (type == Type::kF64) reinterpret_cast<double*>(data())[i] = value;
    if (type == Type::kF32) reinterpret_cast<float*>(data())[i] = single;
    if (type == Type::kBF16) reinterpret_cast<uint16_t*>(data())[i] = uint16_t(wide >> 16);
    if (type == Type::kF16) {
      const int exponent = int(wide >> 23 & 255) - 127 + 15;
      const uint16_t bits = exponent <= 0 ? 0 : uint16_t(exponent << 10 | (wide >> 13 & 1023));
      reinterpret_cast<uint16_t*>(data())[i] = uint16_t(bits | (wide >> 16 & 0x8000));
    }
  }
  void fill(std::mt19937& random, double mean, double spread) {
    std::normal_distribution<double> normal(mean, spread);
    for (int64_t i = 0; i < n; ++i) set(i, normal(random));
  }
};

Type sum_type(Type type) { return type == Type::kF64 ? Type::kF64 : Type::kF32; }

double tolerance(Type type, bool of_sums) {
  if (type == Type::kF64) return 1e-11;
  if (type == Type::kF32 || of_sums) return 2e-5;
  return type == Type::kF16 ? 1.1e-3 : 8.5e-3;
}

struct Case {
  Shape shape;
  Type type;
  bool masked;
  int shift;
  std::string name;
};

void expect(bool ok, const Case& c, const std::string& what, int64_t i, double got, double want) {
  if (ok || ++failures > 20) return;
  std::printf("FAILED %s: %s[%ld] is %.9g, must be %.9g\n", c.name.c_str(), what.c_str(), long(i), got, want);
}

void compare(const Case& c, const std::string& what, const Numbers& got,
             const std::vector<double>& want, bool of_sums, const std::vector<double>& scale) {
  for (int64_t i = 0; i < got.n; ++i) {
    const double allowed = tolerance(c.type, of_sums) * (scale.empty() ? 1 + std::fabs(want[i]) : 1e-30 + scale[i]);
    expect(std::fabs(got[i] - want[i]) <= allowed, c, what, i, got[i], want[i]);
  }
}

double derivative(Activation activation, double high, double g) {
  return activation == Activation::kNone || (g > 0 && !(g >= high));
}

double apply(Activation activation, double high, double z) {
  if (activation == Activation::kNone) return z;
  return std::max(z, 0.0) > high ? high : std::max(z, 0.0);
}

template <class F> void same_bytes(const Case& c, const char* what, Numbers& first, const F& run) {
  Numbers again = first;
  Threads threads(5);
  Lazy lazy;
  for (Pool* pool : {static_cast<Pool*>(&threads), static_cast<Pool*>(&lazy)}) {
    run(pool, again);
    if (first.n && memcmp(first.data(), again.data(), first.n * Numbers::size(first.type)))
      expect(false, c, std::string(what) + " with threads", 0, again[0], first[0]);
  }
}

void test(const Loops* loops, const Case& c) {
  std::mt19937 random(7);
  const Shape& s = c.shape;
  const int64_t vectors = s.batch * s.channels;
  Numbers x(c.type, s.size(), c.shift), a = x, r = x, y = x;
  x.fill(random, 3, 2);
  a.fill(random, 0, 1);
  r.fill(random, 0, 1);
  const Type wide = sum_type(c.type);
  Numbers center(wide, vectors, c.shift), slope = center, offset = center, multiplier = center,
      gate_slope = center, gate_offset = center, out[3] = {center, center, center}, unit = center;
  for (Numbers* v : {&center, &slope, &offset, &multiplier, &gate_slope, &gate_offset}) v->fill(random, 0.5, 1);
  std::vector<uint8_t> bytes;
  Where where;
  if (c.masked) {
    const int64_t repeat = s.outer % 3 == 0 ? 3 : 1;
    for (int64_t i = 0; i < s.batch * s.outer / repeat; ++i) bytes.push_back(random() % 3 != 0);
    where = {bytes.data(), s.batch, repeat};
  }
  const auto counts = [&](int64_t b, int64_t o) {
    return !c.masked || bytes[(b * s.outer + o) / where.repeat];
  };
  const Vectors v{center.data(), slope.data(), offset.data(), multiplier.data(), gate_slope.data(), gate_offset.data()};

  // Reference: f(i, j, counts) at every element i of channel j.
  const auto each = [&](const auto& f) {
    for (int64_t i = 0; i < s.size(); ++i) {
      const int64_t channel = i / s.inner % s.channels, o = i / s.inner / s.channels % s.outer,
                    b = i / s.inner / s.channels / s.outer;
      f(i, b * s.channels + channel, counts(b, o));
    }
  };
  std::vector<double> n(vectors), mean(vectors), m2(vectors), none;
  each([&](int64_t i, int64_t j, bool in) { n[j] += in; mean[j] += in ? x[i] : 0; });
  for (int64_t j = 0; j < vectors; ++j) mean[j] /= std::max(n[j], 1.0);
  each([&](int64_t i, int64_t j, bool in) { m2[j] += in ? (x[i] - mean[j]) * (x[i] - mean[j]) : 0; });

  Reduction reduction{c.type, Activation::kNone, 0.01, x.data(), nullptr, {}};
  const auto run_moments = [&](Pool* pool, Numbers& result) {
    moments({loops, pool}, reduction, s, where, out[0].data(), out[1].data(), result.data(), unit.data());
  };
  run_moments(nullptr, out[2]);
  std::vector<double> delta(vectors);
  for (int64_t j = 0; j < vectors; ++j) delta[j] = mean[j] - out[0][j];
  compare(c, "delta", out[1], delta, true, none);
  compare(c, "m2", out[2], m2, true, none);
  same_bytes(c, "m2", out[2], run_moments);

  for (const auto& [gate, high] : {std::pair{Activation::kNone, 0.0}, std::pair{Activation::kClamp, double(NAN)},
                                   std::pair{Activation::kClamp, 6.0}}) {
    std::vector<double> total(vectors), moment(vectors), size(vectors), moment_size(vectors);
    each([&](int64_t i, int64_t j, bool in) {
      const double d = x[i] - center[j];
      const double value = in ? a[i] * derivative(gate, high, d * gate_slope[j] + gate_offset[j]) : 0;
      total[j] += value;
      moment[j] += value * d;
      size[j] += std::fabs(value);
      moment_size[j] += std::fabs(value * d);
    });
    Reduction of_a{c.type, gate, high, x.data(), a.data(), v};
    const auto run = [&](Pool* pool, Numbers& result) {
      sums({loops, pool}, of_a, s, where, out[0].data(), result.data());
    };
    run(nullptr, out[1]);
    compare(c, "total", out[0], total, true, size);
    compare(c, "moment", out[1], moment, true, moment_size);
    same_bytes(c, "moment", out[1], run);

    for (int form = 0; form < 3; ++form) {
      for (bool second : {false, true}) {
        const bool expand = form == int(Form::kExpand), of_gate = form == int(Form::kGate);
        if (!expand && gate == Activation::kNone) continue;
        if (form == int(Form::kBack) && !second) continue;
        if (c.masked && (expand ? gate != Activation::kNone : of_gate)) continue;  // not in the contract
        Map map{c.type, Form(form), gate, high, x.data(), expand && !second ? nullptr : a.data(),
                of_gate && second ? r.data() : nullptr, y.data(), v, false};
        std::vector<double> want(s.size());
        std::vector<int64_t> edge;  // where rounding decides
        each([&](int64_t i, int64_t j, bool in) {
          const double d = x[i] - center[j], z = in ? d * slope[j] + offset[j] : 0;
          const double g = d * gate_slope[j] + gate_offset[j] + (of_gate && second ? r[i] : 0);
          if (!expand && (std::fabs(g) < 1e-5 || std::fabs(g - 6) < 1e-5)) return void(edge.push_back(i));
          if (expand) want[i] = apply(gate, high, z + (second ? multiplier[j] * a[i] : 0));
          else want[i] = a[i] * derivative(gate, high, g) * (of_gate ? 1 : multiplier[j]) + (of_gate ? 0 : z);
        });
        const auto run_map = [&](Pool* pool, Numbers& result) {
          map.y = result.data();
          jaxbn::map({loops, pool}, map, s, where);
        };
        run_map(nullptr, y);
        for (int64_t i : edge) want[i] = y[i];
        compare(c, "y of form " + std::to_string(form), y, want, false, none);
        same_bytes(c, "y", y, run_map);
      }
    }
  }
}

// |mean| / std of 1e5, a first row far off, and NaN that must not hide.
void test_statistics(const Loops* loops) {
  std::mt19937 random(3);
  for (const Shape shape : {Shape{1, 50000, 8, 1}, Shape{1, 4, 8, 12500}}) {
    Case c{shape, Type::kF32, false, 0, std::string(loops->name) + " offset"};
    Numbers x(Type::kF32, shape.size());
    x.fill(random, 1e5, 1);
    std::vector<double> mean(8), m2(8);
    const auto channel = [&](int64_t i) { return i / shape.inner % 8; };
    for (int64_t i = 0; i < x.n; ++i) mean[channel(i)] += x[i] / 50000;
    for (int64_t i = 0; i < x.n; ++i) m2[channel(i)] += std::pow(x[i] - mean[channel(i)], 2);
    Numbers center(Type::kF32, 8), delta = center, found = center, unit = center;
    const Reduction reduction{Type::kF32, Activation::kNone, 0, x.data(), nullptr, {}};
    moments({loops, nullptr}, reduction, shape, {}, center.data(), delta.data(), found.data(), unit.data());
    for (int j = 0; j < 8; ++j) {
      expect(std::fabs(center[j] + delta[j] - mean[j]) < 1e-6, c, "mean", j, center[j] + delta[j], mean[j]);
      expect(std::fabs(found[j] / m2[j] - 1) < 1e-5, c, "m2", j, found[j], m2[j]);
    }
    x.set(x.n / 2, NAN);
    moments({loops, nullptr}, reduction, shape, {}, center.data(), delta.data(), found.data(), unit.data());
    const int64_t j = channel(x.n / 2);
    expect(std::isnan(delta[j]) && std::isnan(found[j]), c, "NaN", j, found[j], NAN);
  }
}

void test_checks() {
  Call call;
  call.shape = {1, 4, 3, 1};
  call.where_batch = call.where_repeat = 1;
  call.activation = 0;
  float data[12] = {};
  call.operands[kX] = {data, int(Type::kF32), 12, true};
  const Case c{call.shape, Type::kF32, false, 0, "checks"};
  expect(wrong_operands(call, {kX}).empty(), c, "good", 0, 0, 0);
  expect(!wrong_operands(call, {kX, kA}).empty(), c, "missing", 0, 0, 0);
  call.operands[kCenter] = {data, int(Type::kF32), 4, true};
  expect(!wrong_operands(call, {kX}).empty(), c, "size", 0, 0, 0);
  call.operands[kCenter] = {data, int(Type::kF64), 3, true};
  expect(!wrong_operands(call, {kX}).empty(), c, "type", 0, 0, 0);
}

}  // namespace

int main() {
  const std::vector<Shape> shapes = {
      {1, 0, 5, 1},   {1, 1, 1, 1},     {1, 1, 17, 1},  {1, 7, 1, 1},    {1, 1000, 3, 1},
      {1, 129, 64, 1}, {1, 96, 33, 1},  {2, 60, 16, 1}, {1, 300, 1001, 1}, {1, 3, 9001, 1},
      {3, 5, 4, 7},   {1, 2, 3, 49},    {1, 1, 1, 9000}, {2, 6, 40, 5},   {1, 6000, 64, 1},
      {1, 9, 32, 1024}};
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    const Loops* loops = loops_here(isa);
    if (loops == nullptr) {
      std::printf("%s: not on this machine\n", isa);
      continue;
    }
    for (const Shape& shape : shapes)
      for (Type type : {Type::kF16, Type::kBF16, Type::kF32, Type::kF64})
        for (bool masked : {false, true})
          for (int shift : {0, 1}) {
            if (shape.size() > 200000 && (shift || masked)) continue;
            test(loops, {shape, type, masked, shift,
                         std::string(isa) + " type " + std::to_string(int(type)) + " shape " +
                             std::to_string(shape.batch) + "," + std::to_string(shape.outer) + "," +
                             std::to_string(shape.channels) + "," + std::to_string(shape.inner) +
                             (masked ? " masked" : "") + (shift ? " unaligned" : "")});
          }
    test_statistics(loops);
    std::printf("%s: done\n", isa);
  }
  test_checks();
  std::printf(failures ? "%d failures\n" : "all equal\n", failures);
  return failures != 0;
}
