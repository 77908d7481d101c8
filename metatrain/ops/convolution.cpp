// A 3x3 convolution, padded by one, of few small images, and its two gradients.
//
// Images lie as [N, H, W, C], weights as [O, 3, 3, I]; I and O are multiples of LANES. Each function is a sum of small
// matrix products whose rows are found through pointers, so that nothing is copied into columns first: one for each of
// the nine taps of the kernel. Sums are taken in one order: the same bits on each call.

#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

#define UNROLLED(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)

// R rows and V vectors of a product, held in registers.
template <typename T, int R, int V> struct Tile {
  Vec<T> sum[R][V] = {};

  // sum[r] += a[r] * the row b
  inline void add(const T* const (&a)[R], int64_t at, const T* b) {
    Vec<T> row[V];
    UNROLLED(v, V) row[v] = load<T>(b + v * LANES);
    UNROLLED(r, R) {
      const T scalar = a[r][at];
      UNROLLED(v, V) sum[r][v] += scalar * row[v];
    }
  }
};

struct Shape {
  int64_t N, H, W, I, O, stride, M;  // M outputs
  std::vector<int64_t> pixels;       // [t, m] the pixel of x that tap t of output m reads; -1 in the padding

  Shape(int64_t n, int64_t height, int64_t width, int64_t in, int64_t out, int64_t s)
      : N(n), H(height), W(width), I(in), O(out), stride(s), M(n * ((height - 1) / s + 1) * ((width - 1) / s + 1)) {
    pixels.reserve(9 * M);
    for (int t = 0; t < 9; ++t)
      for (int64_t image = 0; image < N; ++image)
        for (int64_t i = t / 3 - 1; i < H - 1 + t / 3; i += stride)
          for (int64_t j = t % 3 - 1; j < W - 1 + t % 3; j += stride)
            pixels.push_back(i < 0 || j < 0 || i >= H || j >= W ? -1 : (image * H + i) * W + j);
  }
  int64_t pixel(int64_t m, int t) const { return pixels[t * M + m]; }
};

// Calls f with the number of rows of each tile of `rows`, and then of vectors of each tile of `columns`, as constants.
template <int R> struct Rows { static constexpr int value = R; };
template <typename F> inline void tiles(int64_t rows, int64_t columns, F f) {
  int64_t c = 0;
  auto along = [&](auto vectors) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6) f(Rows<6>{}, vectors, r, c);
    if (r + 4 <= rows) f(Rows<4>{}, vectors, r, c), r += 4;
    if (r + 2 <= rows) f(Rows<2>{}, vectors, r, c), r += 2;
    if (r < rows) f(Rows<1>{}, vectors, r, c);
    c += decltype(vectors)::value * LANES;
  };
  constexpr int most = REGISTERS / 8;  // six rows of them fill three quarters of the registers
  while (c + most * LANES <= columns) along(Rows<most>{});
  if (c + 2 * LANES <= columns) along(Rows<2>{});
  if (c < columns) along(Rows<1>{});
}

// y[m, o] = sum over taps t and channels i of x[pixel(m, t), i] weight[o, t, i]
template <typename T> void forward(const Shape& s, const T* x, const T* weight, T* y) {
  const std::vector<T> padding(s.I, T(0));
  static thread_local std::vector<T> turned;  // the weight as [t, i, o]
  turned.resize(9 * s.I * s.O);
  for (int64_t k0 = 0; k0 < 9 * s.I; k0 += LANES)
    for (int64_t o0 = 0; o0 < s.O; o0 += LANES)
      for (int64_t k = k0; k < k0 + LANES; ++k)
        for (int64_t o = o0; o < o0 + LANES; ++o) turned[k * s.O + o] = weight[o * 9 * s.I + k];
  tiles(s.M, s.O, [&](auto rows, auto vectors, int64_t m, int64_t o) {
    constexpr int R = decltype(rows)::value, V = decltype(vectors)::value;
    Tile<T, R, V> tile;
    for (int t = 0; t < 9; ++t) {
      const T* from[R];
      for (int r = 0; r < R; ++r) {
        const int64_t p = s.pixel(m + r, t);
        from[r] = p < 0 ? padding.data() : x + p * s.I;
      }
      const T* b = &turned[t * s.I * s.O + o];
      for (int64_t i = 0; i < s.I; ++i, b += s.O) tile.add(from, i, b);
    }
    UNROLLED(r, R) UNROLLED(v, V) store<T>(y + (m + r) * s.O + o + v * LANES, tile.sum[r][v]);
  });
}

// gx[pixel(m, t), i] += sum over o of g[m, o] weight[o, t, i]
template <typename T> void input_gradient(const Shape& s, const T* g, const T* weight, T* gx) {
  for (int64_t k = 0; k < s.N * s.H * s.W * s.I; ++k) gx[k] = 0;
  for (int t = 0; t < 9; ++t)
    tiles(s.M, s.I, [&](auto rows, auto vectors, int64_t m, int64_t i) {
      constexpr int R = decltype(rows)::value, V = decltype(vectors)::value;
      Tile<T, R, V> tile;
      const T* from[R];
      for (int r = 0; r < R; ++r) from[r] = g + (m + r) * s.O;
      const T* b = weight + t * s.I + i;
      for (int64_t o = 0; o < s.O; ++o, b += 9 * s.I) tile.add(from, o, b);
      UNROLLED(r, R) {
        const int64_t p = s.pixel(m + r, t);
        if (p >= 0) UNROLLED(v, V) {
          T* to = gx + p * s.I + i + v * LANES;
          store<T>(to, load<T>(to) + tile.sum[r][v]);
        }
      }
    });
}

// gw[o, t, i] = sum over m of g[m, o] x[pixel(m, t), i]
template <typename T> void weight_gradient(const Shape& s, const T* g, const T* x, T* gw) {
  std::vector<const T*> seen(s.M);
  std::vector<int64_t> at(s.M);
  for (int t = 0; t < 9; ++t) {
    int64_t count = 0;
    for (int64_t m = 0; m < s.M; ++m) {
      const int64_t p = s.pixel(m, t);
      if (p < 0) continue;
      seen[count] = x + p * s.I;
      at[count++] = m * s.O;
    }
    tiles(s.O, s.I, [&](auto rows, auto vectors, int64_t o, int64_t i) {
      constexpr int R = decltype(rows)::value, V = decltype(vectors)::value;
      Tile<T, R, V> tile;
      const T* from[R];
      for (int r = 0; r < R; ++r) from[r] = g + o + r;
      for (int64_t k = 0; k < count; ++k) tile.add(from, at[k], seen[k] + i);
      UNROLLED(r, R) UNROLLED(v, V) store<T>(gw + ((o + r) * 9 + t) * s.I + i + v * LANES, tile.sum[r][v]);
    });
  }
}

}  // namespace

#define EXPORT(name, T, A, B, C)                                                                           \
  extern "C" void name##_##T(int64_t N, int64_t H, int64_t W, int64_t I, int64_t O, int64_t stride,        \
                             const T* A, const T* B, T* C) {                                               \
    name<T>(Shape(N, H, W, I, O, stride), A, B, C);                                                        \
  }

EXPORT(forward, float, x, weight, y)
EXPORT(forward, double, x, weight, y)
EXPORT(input_gradient, float, g, weight, gx)
EXPORT(input_gradient, double, g, weight, gx)
EXPORT(weight_gradient, float, g, x, gw)
EXPORT(weight_gradient, double, g, x, gw)
