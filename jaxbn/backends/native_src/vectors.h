// Vectors of JAXBN_BYTES bytes and how each type is read into them.
//
// Included once by each build of loops.cc; everything is local to it, because the same
// names are compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define JAXBN_INLINE inline __attribute__((always_inline))

namespace {

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

typedef float VF __attribute__((vector_size(JAXBN_BYTES)));
typedef double VD __attribute__((vector_size(JAXBN_BYTES)));
typedef uint32_t VU __attribute__((vector_size(JAXBN_BYTES)));
typedef int32_t VI __attribute__((vector_size(JAXBN_BYTES)));
typedef uint16_t VH __attribute__((vector_size(JAXBN_BYTES / 2)));

template <class A> struct Vector;
template <> struct Vector<float> { using Type = VF; };
template <> struct Vector<double> { using Type = VD; };

template <class V, class P> JAXBN_INLINE V load(const P* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class P> JAXBN_INLINE void store(P* p, V v) { memcpy(p, &v, sizeof v); }

// A store that does not read the line first; `p` is aligned to the vector.
template <class V> JAXBN_INLINE void stream(void* p, V v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX__)
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#else
  memcpy(p, &v, sizeof v);
#endif
}

JAXBN_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class V, class M> JAXBN_INLINE V select(M mask, V yes, V no) {
  return mask ? yes : no;
}

JAXBN_INLINE VF half_to_float(VH h) {
#if defined(__AVX512F__)
  return (VF)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (VF)_mm256_cvtph_ps((__m128i)h);
#elif defined(__aarch64__)
  return (VF)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)h));
#else
  // Exponents move by 112; subnormals are renormalized by an exact subtraction.
  VU wide = __builtin_convertvector(h, VU);
  const VU exponent = VU{} + 0x0f800000u;
  VU bits = (wide & 0x7fffu) << 13;
  VU kind = bits & exponent;
  bits += 112u << 23;
  bits = select(kind == exponent, bits + (112u << 23), bits);
  VU lifted = bits + (1u << 23);
  VF small = (VF)lifted - (VF)(VU{} + (113u << 23));
  VF magnitude = select(kind == 0u, small, (VF)bits);
  return (VF)((VU)magnitude | ((wide & 0x8000u) << 16));
#endif
}

JAXBN_INLINE VH float_to_half(VF v) {
#if defined(__AVX512F__)
  return (VH)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (VH)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
  return (VH)vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v));
#else
  VU sign = ((VU)v & 0x80000000u) >> 16;
  VU bits = (VU)v & 0x7fffffffu;
  // Below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits.
  VU low = (VU)((VF)bits + 0.5f) - 0x3f000000u;
  VU normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  VU result = select(bits < (113u << 23), low, normal);
  result = select(bits >= 0x47800000u, VU{} + 0x7c00u, result);
  result = select(bits > 0x7f800000u, VU{} + 0x7e00u, result);
  return __builtin_convertvector(result | sign, VH);
#endif
}

// To nearest even, in the upper half. A NaN with all of its lower bits set would carry
// into the sign, so none may come in: those of 16-bit data have zeros there, those of
// vectors go through `plain_nan`, and arithmetic makes others only by adding the quiet bit.
JAXBN_INLINE VU round_to_bf16(VF v) {
  VU bits = (VU)v;
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// The value, or the NaN without a payload.
template <class A> JAXBN_INLINE A plain_nan(A value) {
  return value == value ? value : A(__builtin_nan(""));
}

// Two vectors: the values of 2 * JAXBN_BYTES / sizeof(A) consecutive elements.
template <class A> struct Pair {
  typename Vector<A>::Type lo, hi;
};

// How elements of type T are read, written and ordered in a Pair: every kStride-th one,
// then those after them.
template <class T> struct Access {
  using A = T;
  static constexpr int kLanes = JAXBN_BYTES / sizeof(A), kUnit = 2 * kLanes, kStride = 1;
  using V = typename Vector<A>::Type;
  static JAXBN_INLINE Pair<A> read(const T* p) { return {load<V>(p), load<V>(p + kLanes)}; }
  template <bool kStream> static JAXBN_INLINE void write(T* p, Pair<A> v) {
    if constexpr (kStream) {
      stream(p, v.lo);
      stream(p + kLanes, v.hi);
    } else {
      store(p, v.lo);
      store(p + kLanes, v.hi);
    }
  }
};

// Even elements in the first vector, odd ones in the second: one operation each.
template <> struct Access<bf16> {
  using A = float;
  static constexpr int kLanes = JAXBN_BYTES / sizeof(A), kUnit = 2 * kLanes, kStride = 2;
  static JAXBN_INLINE Pair<float> read(const bf16* p) {
    VU both = load<VU>(p);
    return {(VF)(both << 16), (VF)(both & 0xffff0000u)};
  }
  template <bool kStream> static JAXBN_INLINE void write(bf16* p, Pair<float> v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    VU both = (VU)_mm256_blend_epi16((__m256i)(round_to_bf16(v.lo) >> 16),
                                     (__m256i)round_to_bf16(v.hi), 0xaa);
#else
    VU both = (round_to_bf16(v.lo) >> 16) | (round_to_bf16(v.hi) & 0xffff0000u);
#endif
    if constexpr (kStream) stream(p, both); else store(p, both);
  }
};

template <> struct Access<f16> {
  using A = float;
  static constexpr int kLanes = JAXBN_BYTES / sizeof(A), kUnit = 2 * kLanes, kStride = 1;
  static JAXBN_INLINE Pair<float> read(const f16* p) {
    return {half_to_float(load<VH>(p)), half_to_float(load<VH>(p + kLanes))};
  }
  template <bool kStream> static JAXBN_INLINE void write(f16* p, Pair<float> v) {
    VH halves[2] = {float_to_half(v.lo), float_to_half(v.hi)};
    if constexpr (kStream) stream(p, load<VU>(halves)); else memcpy(p, halves, sizeof halves);
  }
};

// Where element `e` is in an arranged vector.
template <class T> JAXBN_INLINE int64_t place(int64_t e) {
  constexpr int stride = Access<T>::kStride, unit = Access<T>::kUnit;
  const int64_t in = e % unit;
  return e - in + in / stride + in % stride * (unit / stride);
}

// The first `n` elements of a unit, zeros after them.
template <class T> JAXBN_INLINE auto read_some(const T* p, int64_t n) {
  T all[Access<T>::kUnit];
  memset(all, 0, sizeof all);
  memcpy(all, p, n * sizeof(T));
  return Access<T>::read(all);
}

template <class T, class P> JAXBN_INLINE void write_some(T* p, P v, int64_t n) {
  T all[Access<T>::kUnit];
  Access<T>::template write<false>(all, v);
  memcpy(p, all, n * sizeof(T));
}

template <class A> JAXBN_INLINE Pair<A> arranged(const void* p, int64_t unit) {
  using V = typename Vector<A>::Type;
  constexpr int lanes = JAXBN_BYTES / sizeof(A);
  const A* at = static_cast<const A*>(p) + unit * 2 * lanes;
  return {load<V>(at), load<V>(at + lanes)};
}

template <class A> JAXBN_INLINE void arrange_to(A* p, int64_t unit, Pair<A> v) {
  constexpr int lanes = JAXBN_BYTES / sizeof(A);
  store(p + unit * 2 * lanes, v.lo);
  store(p + unit * 2 * lanes + lanes, v.hi);
}

template <class A> JAXBN_INLINE Pair<A> all_of(A value) {
  using V = typename Vector<A>::Type;
  return {V{} + value, V{} + value};
}

template <class A> JAXBN_INLINE Pair<A> operator+(Pair<A> a, Pair<A> b) {
  return {a.lo + b.lo, a.hi + b.hi};
}
template <class A> JAXBN_INLINE Pair<A> operator-(Pair<A> a, Pair<A> b) {
  return {a.lo - b.lo, a.hi - b.hi};
}
template <class A> JAXBN_INLINE Pair<A> operator*(Pair<A> a, Pair<A> b) {
  return {a.lo * b.lo, a.hi * b.hi};
}

}  // namespace
