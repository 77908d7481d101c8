// Vectors of LANES numbers, by the compiler's extension: what the kernels share.
#pragma once

#include <cstdint>

namespace {

// A vector of floats is one register, so that sums over several of them stay in registers.
#if defined(__AVX512F__)
constexpr int WIDTH = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int WIDTH = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int WIDTH = 16, REGISTERS = 32;
#else
constexpr int WIDTH = 16, REGISTERS = 16;
#endif
constexpr int LANES = WIDTH / sizeof(float);  // divides the channels, which are a multiple of 16
constexpr uint8_t OFF = 255;  // the choice of an output that ReLU has set to zero

template <typename T> struct Types;
template <> struct Types<float> {
  typedef float Vec __attribute__((vector_size(WIDTH), aligned(4)));
  typedef int32_t Mask __attribute__((vector_size(WIDTH), aligned(4)));
};
template <> struct Types<double> {
  typedef double Vec __attribute__((vector_size(2 * WIDTH), aligned(8)));
  typedef int64_t Mask __attribute__((vector_size(2 * WIDTH), aligned(8)));
};
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1)));

template <typename T> using Vec = typename Types<T>::Vec;
template <typename T> using Mask = typename Types<T>::Mask;

template <typename T> inline Vec<T> load(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }
template <typename T> inline void store(T* p, Vec<T> v) { *reinterpret_cast<Vec<T>*>(p) = v; }
template <typename T> inline Mask<T> load_choice(const uint8_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Mask<T>);
}
template <typename T> inline void store_choice(uint8_t* p, Mask<T> v) {
  *reinterpret_cast<Bytes*>(p) = __builtin_convertvector(v, Bytes);
}

// As torch has it: what is not a number is greater than all, and ReLU lets it pass.
template <typename T> inline Mask<T> greater(Vec<T> a, Vec<T> b) { return (a > b) | (a != a); }
template <typename T> inline Mask<T> not_off(Vec<T> a) { return ~(a <= 0); }

}  // namespace
