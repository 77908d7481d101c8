// Batch normalisation by the batch's own statistics, ReLU and max-pool in one pass over the images, with its first and
// second derivatives. block.py says what they are; this file says how they are computed. What is x here is z there.
//
// Images lie as [N, H, W, C], C a multiple of LANES. A pixel's channels are read K vectors of LANES at a time. Sums over
// pixels are taken in T along a row of an image and in double over rows, in one order: the same bits on each call.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

template <typename T> inline void add_to(double* sums, Vec<T> v) {
  for (int lane = 0; lane < LANES; ++lane) sums[lane] += v[lane];
}

// N images of H x W pixels and C channels; outputs are h x w, windows of P x P.
template <int P> struct Shape {
  int64_t N, H, W, C, h, w;
  double eps;
  Shape(int64_t n, int64_t height, int64_t width, int64_t c, double e)
      : N(n), H(height), W(width), C(c), h(height / P), w(width / P), eps(e) {}
  int64_t pixel(int64_t n, int64_t i, int64_t j) const { return ((n * H + i) * W + j) * C; }
  int64_t output(int64_t n, int64_t i, int64_t j) const { return ((n * h + i) * w + j) * C; }
  int64_t in_window(int k) const { return (k / P * W + k % P) * C; }  // from a window's first pixel to its k-th
  double count() const { return double(N) * H * W; }
};

#define FOR_EACH_VECTOR(b) _Pragma("GCC unroll 4") for (int b = 0; b < K; ++b)

// y = max over the window of relu(scale (x - mean) rstd + shift); `winner` is x where the maximum is, `choice` which
// pixel of the window that is. Of equal ones it is the first, as in max_pool2d. If it ADDS, a residual is added before
// the ReLU.
template <typename T, int P, int K, bool ADDS>
void activated(Shape<P> s, const T* x, const T* scale, const T* shift, const T* residual, T* y, T* winner,
               uint8_t* choice, T* mean, T* rstd) {
  std::vector<double> sum(s.C, 0.0), square(s.C, 0.0);
  for (int64_t row = 0; row < s.N * s.H; ++row)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      const T* p = x + row * s.W * s.C + c;
      Vec<T> origin[K], a[K] = {}, q[K] = {};  // about the first pixel, so that no digits cancel
      FOR_EACH_VECTOR(b) origin[b] = load<T>(x + c + b * LANES);
      for (int64_t j = 0; j < s.W; ++j, p += s.C) FOR_EACH_VECTOR(b) {
        const Vec<T> d = load<T>(p + b * LANES) - origin[b];
        a[b] += d;
        q[b] += d * d;
      }
      FOR_EACH_VECTOR(b) {
        add_to<T>(&sum[c + b * LANES], a[b]);
        add_to<T>(&square[c + b * LANES], q[b]);
      }
    }
  std::vector<T> factor(s.C), offset(s.C);
  for (int64_t c = 0; c < s.C; ++c) {
    const double m = sum[c] / s.count(), variance = std::max(0.0, square[c] / s.count() - m * m);
    const double r = 1 / std::sqrt(variance + s.eps), centre = m + x[c];
    mean[c] = centre;
    rstd[c] = r;
    factor[c] = scale[c] * r;
    offset[c] = shift[c] - centre * scale[c] * r;
  }
  for (int64_t n = 0; n < s.N; ++n) for (int64_t i = 0; i < s.h; ++i)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      Vec<T> f[K], o[K];
      FOR_EACH_VECTOR(b) f[b] = load<T>(&factor[c + b * LANES]), o[b] = load<T>(&offset[c + b * LANES]);
      for (int64_t j = 0; j < s.w; ++j) {
        const int64_t first = s.pixel(n, i * P, j * P) + c;
        const T* p = x + first;
        const int64_t out = s.output(n, i, j) + c;
        FOR_EACH_VECTOR(b) {
          Vec<T> won = load<T>(p + b * LANES), best = won * f[b] + o[b];
          if constexpr (ADDS) best += load<T>(residual + first + b * LANES);
          Mask<T> which = {};
          _Pragma("GCC unroll 4") for (int k = 1; k < P * P; ++k) {
            const Vec<T> other = load<T>(p + s.in_window(k) + b * LANES);
            Vec<T> z = other * f[b] + o[b];
            if constexpr (ADDS) z += load<T>(residual + first + s.in_window(k) + b * LANES);
            const Mask<T> better = greater<T>(z, best);
            best = better ? z : best;
            won = better ? other : won;
            which = better ? (Mask<T>{} + k) : which;
          }
          const Mask<T> on = not_off<T>(best);
          store<T>(y + out + b * LANES, on ? best : Vec<T>{});
          if (P > 1) store<T>(winner + out + b * LANES, won);
          store_choice<T>(choice + out + b * LANES, on ? which : (Mask<T>{} + OFF));
        }
      }
    }
}

template <typename T, int P, int K>
void forward(Shape<P> s, const T* x, const T* scale, const T* shift, T* y, T* winner, uint8_t* choice, T* mean,
             T* rstd) {
  activated<T, P, K, false>(s, x, scale, shift, nullptr, y, winner, choice, mean, rstd);
}

template <typename T, int P, int K>
void forward_residual(Shape<P> s, const T* x, const T* scale, const T* shift, const T* residual, T* y, T* winner,
                      uint8_t* choice, T* mean, T* rstd) {
  activated<T, P, K, true>(s, x, scale, shift, residual, y, winner, choice, mean, rstd);
}

// Visits the pixels that no window covers: the last row and column of images of odd height and width.
template <int P, typename F> inline void uncovered(Shape<P> s, int64_t n, F visit) {
  for (int64_t i = 0; i < s.H; ++i)
    for (int64_t j = i < s.h * P ? s.w * P : 0; j < s.W; ++j) visit(s.pixel(n, i, j));
}

// u = gy at the winners, zero elsewhere: the gradient of a residual.
template <typename T, int P, int K> void scatter(Shape<P> s, const T* gy, const uint8_t* choice, T* u) {
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      for (int64_t i = 0; i < s.h; ++i) for (int64_t j = 0; j < s.w; ++j) {
        const int64_t out = s.output(n, i, j) + c, first = s.pixel(n, i * P, j * P) + c;
        FOR_EACH_VECTOR(b) {
          const Mask<T> which = load_choice<T>(choice + out + b * LANES);
          const Vec<T> g = load<T>(gy + out + b * LANES);
          _Pragma("GCC unroll 4") for (int k = 0; k < P * P; ++k)
            store<T>(u + first + s.in_window(k) + b * LANES, which == k ? g : Vec<T>{});
        }
      }
      uncovered(s, n, [&](int64_t pixel) { FOR_EACH_VECTOR(b) store<T>(u + pixel + c + b * LANES, Vec<T>{}); });
    }
}

// Its transpose: v at the winners, zero where there is none.
template <typename T, int P, int K> void gather(Shape<P> s, const T* v, const uint8_t* choice, T* gy) {
  for (int64_t n = 0; n < s.N; ++n) for (int64_t i = 0; i < s.h; ++i) for (int64_t j = 0; j < s.w; ++j)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      const int64_t out = s.output(n, i, j) + c, first = s.pixel(n, i * P, j * P) + c;
      FOR_EACH_VECTOR(b) {
        const Mask<T> which = load_choice<T>(choice + out + b * LANES);
        Vec<T> at_winner = {};
        _Pragma("GCC unroll 4") for (int k = 0; k < P * P; ++k)
          at_winner = which == k ? load<T>(v + first + s.in_window(k) + b * LANES) : at_winner;
        store<T>(gy + out + b * LANES, at_winner);
      }
    }
}

// u = gy at the winners, zero elsewhere; s1 = sum u, s2 = sum u xhat.
// gx = scale rstd (u - s1 / M - xhat s2 / M), written as  A u + X x + B.
template <typename T, int P, int K>
void backward(Shape<P> s, const T* gy, const T* x, const T* winner, const uint8_t* choice, const T* scale, const T* mean,
              const T* rstd, T* gx, T* s1, T* s2) {
  std::vector<double> sum(s.C, 0.0), product(s.C, 0.0);
  for (int64_t row = 0; row < s.N * s.h; ++row)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      Vec<T> centre[K], a[K] = {}, q[K] = {};
      FOR_EACH_VECTOR(b) centre[b] = load<T>(mean + c + b * LANES);
      for (int64_t j = 0; j < s.w; ++j) {
        const int64_t out = (row * s.w + j) * s.C + c;
        FOR_EACH_VECTOR(b) {
          const auto on = load_choice<T>(choice + out + b * LANES) != OFF;
          const Vec<T> u = on ? load<T>(gy + out + b * LANES) : Vec<T>{};
          a[b] += u;
          q[b] += u * (load<T>(winner + out + b * LANES) - centre[b]);
        }
      }
      FOR_EACH_VECTOR(b) {
        add_to<T>(&sum[c + b * LANES], a[b]);
        add_to<T>(&product[c + b * LANES], q[b]);
      }
    }
  std::vector<T> A(s.C), B(s.C), X(s.C);
  for (int64_t c = 0; c < s.C; ++c) {
    const double M = s.count(), r = rstd[c], dot = product[c] * r, a = scale[c] * r, along = -a * r * dot / M;
    A[c] = a;
    X[c] = along;
    B[c] = -a * sum[c] / M - along * mean[c];
    s1[c] = sum[c];
    s2[c] = dot;
  }
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      Vec<T> a[K], base[K], along[K];
      FOR_EACH_VECTOR(b) {
        a[b] = load<T>(&A[c + b * LANES]);
        base[b] = load<T>(&B[c + b * LANES]);
        along[b] = load<T>(&X[c + b * LANES]);
      }
      for (int64_t i = 0; i < s.h; ++i) for (int64_t j = 0; j < s.w; ++j) {
        const int64_t out = s.output(n, i, j) + c, first = s.pixel(n, i * P, j * P) + c;
        FOR_EACH_VECTOR(b) {
          const Mask<T> which = load_choice<T>(choice + out + b * LANES);
          const Vec<T> u = a[b] * load<T>(gy + out + b * LANES);
          _Pragma("GCC unroll 4") for (int k = 0; k < P * P; ++k) {
            const int64_t at = first + s.in_window(k) + b * LANES;
            store<T>(gx + at, (which == k ? u : Vec<T>{}) + along[b] * load<T>(x + at) + base[b]);
          }
        }
      }
      uncovered(s, n, [&](int64_t pixel) {
        FOR_EACH_VECTOR(b) {
          const int64_t at = pixel + c + b * LANES;
          store<T>(gx + at, along[b] * load<T>(x + at) + base[b]);
        }
      });
    }
}

// The derivative of backward's (gx, gscale = s2, gshift = s1) along cotangents (v, a, b): of gy, x and scale.
// v1 = sum v, v2 = sum v xhat, vu = sum v u, core = vu - s1 v1 / M - s2 v2 / M.
template <typename T, int P, int K>
void double_backward(Shape<P> s, const T* v, const T* a, const T* b_, const T* gy, const T* x, const T* winner,
                     const uint8_t* choice, const T* scale, const T* mean, const T* rstd, const T* s1, const T* s2,
                     T* ggy, T* gx, T* gscale) {
  std::vector<double> sum(s.C, 0.0), product(s.C, 0.0), with_u(s.C, 0.0);
  for (int64_t row = 0; row < s.N * s.H; ++row)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      Vec<T> centre[K], p1[K] = {}, p2[K] = {};
      FOR_EACH_VECTOR(b) centre[b] = load<T>(mean + c + b * LANES);
      for (int64_t j = 0; j < s.W; ++j) FOR_EACH_VECTOR(b) {
        const int64_t at = (row * s.W + j) * s.C + c + b * LANES;
        const Vec<T> t = load<T>(v + at);
        p1[b] += t;
        p2[b] += t * (load<T>(x + at) - centre[b]);
      }
      FOR_EACH_VECTOR(b) {
        add_to<T>(&sum[c + b * LANES], p1[b]);
        add_to<T>(&product[c + b * LANES], p2[b]);
      }
    }
  for (int64_t n = 0; n < s.N; ++n) for (int64_t i = 0; i < s.h; ++i)  // ggy holds v at the winners for a while
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      Vec<T> pu[K] = {};
      for (int64_t j = 0; j < s.w; ++j) {
        const int64_t out = s.output(n, i, j) + c, first = s.pixel(n, i * P, j * P) + c;
        FOR_EACH_VECTOR(b) {
          const Mask<T> which = load_choice<T>(choice + out + b * LANES);
          Vec<T> at_winner = {};
          _Pragma("GCC unroll 4") for (int k = 0; k < P * P; ++k)
            at_winner = which == k ? load<T>(v + first + s.in_window(k) + b * LANES) : at_winner;
          pu[b] += at_winner * load<T>(gy + out + b * LANES);
          store<T>(ggy + out + b * LANES, at_winner);
        }
      }
      FOR_EACH_VECTOR(b) add_to<T>(&with_u[c + b * LANES], pu[b]);
    }
  // ggy = D v + E + F x at the winners, gx = U u + V v + X x + B everywhere
  std::vector<T> D(s.C), E(s.C), F(s.C), U(s.C), V(s.C), X(s.C), B(s.C);
  for (int64_t c = 0; c < s.C; ++c) {
    const double M = s.count(), r = rstd[c], g = scale[c] * r, S1 = s1[c], S2 = s2[c];
    const double v1 = sum[c], v2 = product[c] * r, core = with_u[c] - S1 * v1 / M - S2 * v2 / M;
    gscale[c] = r * core;
    D[c] = g;
    const double slope = (a[c] - g * v2 / M) * r;
    F[c] = slope;
    E[c] = b_[c] - g * v1 / M - slope * mean[c];
    const double of_u = a[c] - g * v2 / M, of_v = -g * S2 / M;  // d/d xhat = of_u u + of_v v
    const double q1 = (of_u * S1 + of_v * v1) / M, q2 = (of_u * S2 + of_v * v2) / M;
    const double along = -r * (r * q2 + g * core * r / M);
    U[c] = r * of_u;
    V[c] = r * of_v;
    X[c] = along;
    B[c] = -r * q1 - along * mean[c];
  }
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t c = 0; c < s.C; c += K * LANES) {
      Vec<T> u_[K], v_[K], along[K], base[K];
      FOR_EACH_VECTOR(b) {
        u_[b] = load<T>(&U[c + b * LANES]);
        v_[b] = load<T>(&V[c + b * LANES]);
        along[b] = load<T>(&X[c + b * LANES]);
        base[b] = load<T>(&B[c + b * LANES]);
      }
      for (int64_t i = 0; i < s.h; ++i) for (int64_t j = 0; j < s.w; ++j) {
        const int64_t out = s.output(n, i, j) + c, first = s.pixel(n, i * P, j * P) + c;
        FOR_EACH_VECTOR(b) {
          const int64_t channel = c + b * LANES, o = out + b * LANES;
          const Mask<T> which = load_choice<T>(choice + o);
          const Vec<T> u = u_[b] * load<T>(gy + o);
          const Vec<T> d = load<T>(&D[channel]) * load<T>(ggy + o) + load<T>(&E[channel]) +
                           load<T>(&F[channel]) * load<T>(winner + o);
          store<T>(ggy + o, which != OFF ? d : Vec<T>{});
          _Pragma("GCC unroll 4") for (int k = 0; k < P * P; ++k) {
            const int64_t at = first + s.in_window(k) + b * LANES;
            store<T>(gx + at, (which == k ? u : Vec<T>{}) + v_[b] * load<T>(v + at) + along[b] * load<T>(x + at) +
                                  base[b]);
          }
        }
      }
      uncovered(s, n, [&](int64_t pixel) {
        FOR_EACH_VECTOR(b) {
          const int64_t at = pixel + c + b * LANES;
          store<T>(gx + at, v_[b] * load<T>(v + at) + along[b] * load<T>(x + at) + base[b]);
        }
      });
    }
}

}  // namespace

// One C function for each derivative, window and type; four vectors of floats at a time where the channels allow it.
#define DISPATCH(function, T, P, ...)                           \
  do {                                                          \
    const Shape<P> s(N, H, W, C, eps);                          \
    if constexpr (sizeof(T) == sizeof(float))                   \
      if (C % (4 * LANES) == 0) {                               \
        function<T, P, 4>(__VA_ARGS__);                         \
        return;                                                 \
      }                                                         \
    function<T, P, 1>(__VA_ARGS__);                             \
  } while (0)

#define EXPORT(T, P)                                                                                                  \
  extern "C" void forward_##P##_##T(int64_t N, int64_t H, int64_t W, int64_t C, double eps, const T* x,               \
                                    const T* scale, const T* shift, T* y, T* winner, uint8_t* choice, T* mean,        \
                                    T* rstd) {                                                                        \
    DISPATCH(forward, T, P, s, x, scale, shift, y, winner, choice, mean, rstd);                                       \
  }                                                                                                                   \
  extern "C" void forward_residual_##P##_##T(int64_t N, int64_t H, int64_t W, int64_t C, double eps, const T* x,      \
                                             const T* scale, const T* shift, const T* residual, T* y, T* winner,      \
                                             uint8_t* choice, T* mean, T* rstd) {                                     \
    DISPATCH(forward_residual, T, P, s, x, scale, shift, residual, y, winner, choice, mean, rstd);                    \
  }                                                                                                                   \
  extern "C" void scatter_##P##_##T(int64_t N, int64_t H, int64_t W, int64_t C, double eps, const T* gy,              \
                                    const uint8_t* choice, T* u) {                                                    \
    DISPATCH(scatter, T, P, s, gy, choice, u);                                                                        \
  }                                                                                                                   \
  extern "C" void gather_##P##_##T(int64_t N, int64_t H, int64_t W, int64_t C, double eps, const T* v,                \
                                   const uint8_t* choice, T* gy) {                                                    \
    DISPATCH(gather, T, P, s, v, choice, gy);                                                                         \
  }                                                                                                                   \
  extern "C" void backward_##P##_##T(int64_t N, int64_t H, int64_t W, int64_t C, double eps, const T* gy, const T* x, \
                                     const T* winner, const uint8_t* choice, const T* scale, const T* mean,           \
                                     const T* rstd, T* gx, T* s1, T* s2) {                                            \
    DISPATCH(backward, T, P, s, gy, x, winner, choice, scale, mean, rstd, gx, s1, s2);                                \
  }                                                                                                                   \
  extern "C" void double_backward_##P##_##T(int64_t N, int64_t H, int64_t W, int64_t C, double eps, const T* v,       \
                                            const T* a, const T* b, const T* gy, const T* x, const T* winner,         \
                                            const uint8_t* choice, const T* scale, const T* mean, const T* rstd,      \
                                            const T* s1, const T* s2, T* ggy, T* gx, T* gscale) {                     \
    DISPATCH(double_backward, T, P, s, v, a, b, gy, x, winner, choice, scale, mean, rstd, s1, s2, ggy, gx, gscale);   \
  }

EXPORT(float, 1)
EXPORT(float, 2)
EXPORT(double, 1)
EXPORT(double, 2)
