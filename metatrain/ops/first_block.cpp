// The block on images of few channels, such as the first one of a network: nothing of the size of its convolution's
// output is kept. first_block.py says what the functions are.
//
// Images lie as [N, I, H, W]; outputs as [N, h, w, O], O a multiple of LANES. K = 9 I numbers of x are the patch that an
// output of the convolution is a weighted sum of; it has height H' = ceil(H / stride), and h = H' / P with windows of
// P x P. Sums over outputs are taken in T along a row and in double over rows, in one order: the same bits on each call.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

#define FOR_EACH_VECTOR(b) _Pragma("GCC unroll 2") for (int b = 0; b < B; ++b)
#define FOR_EACH_PIXEL(k) _Pragma("GCC unroll 4") for (int k = 0; k < P * P; ++k)

template <typename T> struct Images {
  int64_t N, I, H, W, O, stride, K, wide, tall;  // wide, tall: with a border of zeros
  std::vector<T> padded;                         // one image, [I, tall, wide]
  std::vector<int64_t> offset;                   // [K] of a patch's numbers from its first

  Images(int64_t n, int64_t i, int64_t h, int64_t w, int64_t o, int64_t s)
      : N(n), I(i), H(h), W(w), O(o), stride(s), K(9 * i), wide(w + 2), tall(h + 2), padded(i * tall * wide, T(0)) {
    for (int64_t c = 0; c < I; ++c)
      for (int t = 0; t < 9; ++t) offset.push_back((c * tall + t / 3) * wide + t % 3);
  }
  int64_t height() const { return (H - 1) / stride + 1; }
  int64_t width() const { return (W - 1) / stride + 1; }
  void pad(const T* x, int64_t image) {
    for (int64_t row = 0; row < I * H; ++row)
      std::copy_n(x + (image * I * H + row) * W, W, &padded[(row / H * tall + row % H + 1) * wide + 1]);
  }
  // The patch of the convolution's output at i, j begins here.
  const T* patch(int64_t i, int64_t j) const { return &padded[i * stride * wide + j * stride]; }
};

// first[t] = sum over outputs of patch[t], second[t, u] = sum of patch[t] patch[u]
template <typename T> void moments(Images<T> s, const T* x, double* first, double* second) {
  const int64_t lanes = (s.K + LANES - 1) / LANES * LANES, w = s.width();
  std::vector<T> patches(w * lanes, T(0));  // of a row
  std::fill_n(first, s.K, 0.0);
  std::fill_n(second, s.K * s.K, 0.0);
  for (int64_t n = 0; n < s.N; ++n) {
    s.pad(x, n);
    for (int64_t i = 0; i < s.height(); ++i) {
      for (int64_t j = 0; j < w; ++j)
        for (int64_t t = 0; t < s.K; ++t) patches[j * lanes + t] = s.patch(i, j)[s.offset[t]];
      for (int64_t v = 0; v < lanes; v += LANES) for (int64_t t0 = 0; t0 < s.K; t0 += 9) {  // nine sums in registers
        Vec<T> sum[9] = {}, all = {};
        for (int64_t j = 0; j < w; ++j) {
          const T* p = &patches[j * lanes];
          const Vec<T> here = load<T>(p + v);
          all += here;
          _Pragma("GCC unroll 9") for (int t = 0; t < 9; ++t) sum[t] += p[t0 + t] * here;
        }
        for (int64_t u = v; u < std::min(v + LANES, s.K); ++u) {
          if (t0 == 0) first[u] += all[u - v];
          for (int t = 0; t < 9; ++t) second[(t0 + t) * s.K + u] += sum[t][u - v];
        }
      }
    }
  }
}

// The values V_o . patch + c_o of a window's pixels, for B vectors of channels; V is [K, O].
template <typename T, int P, int B>
inline void values(const Images<T>& s, const T* V, const T* c, int64_t i, int64_t j, int64_t o,
                   Vec<T> (&found)[B][P * P]) {
  const T* from[P * P];
  FOR_EACH_PIXEL(k) {
    from[k] = s.patch(i * P + k / P, j * P + k % P);
    FOR_EACH_VECTOR(b) found[b][k] = load<T>(c + o + b * LANES);
  }
  for (int64_t t = 0; t < s.K; ++t) {
    Vec<T> weight[B];
    FOR_EACH_VECTOR(b) weight[b] = load<T>(V + t * s.O + o + b * LANES);
    const int64_t offset = s.offset[t];
    FOR_EACH_PIXEL(k) {
      const T number = from[k][offset];
      FOR_EACH_VECTOR(b) found[b][k] += number * weight[b];
    }
  }
}

// y = max over the window of relu(V_o . patch + c_o); `choice` is which pixel that is, of equal ones the first.
template <typename T, int P, int B>
void choose(Images<T> s, const T* V, const T* c, const T* x, T* y, uint8_t* choice) {
  const int64_t h = s.height() / P, w = s.width() / P;
  for (int64_t n = 0; n < s.N; ++n) {
    s.pad(x, n);
    for (int64_t i = 0; i < h; ++i) for (int64_t j = 0; j < w; ++j)
      for (int64_t o = 0; o < s.O; o += B * LANES) {
        Vec<T> found[B][P * P];
        values<T, P, B>(s, V, c, i, j, o, found);
        FOR_EACH_VECTOR(b) {
          Vec<T> best = found[b][0];
          Mask<T> which = {};
          _Pragma("GCC unroll 4") for (int k = 1; k < P * P; ++k) {
            const Mask<T> better = greater<T>(found[b][k], best);
            best = better ? found[b][k] : best;
            which = better ? (Mask<T>{} + k) : which;
          }
          const Mask<T> on = not_off<T>(best);
          const int64_t to = ((n * h + i) * w + j) * s.O + o + b * LANES;
          store<T>(y + to, on ? best : Vec<T>{});
          store_choice<T>(choice + to, on ? which : (Mask<T>{} + OFF));
        }
      }
  }
}

// y = V_o . patch + c_o at the pixels that were chosen, 0 where none was
template <typename T, int P, int B>
void at(Images<T> s, const T* V, const T* c, const T* x, const uint8_t* choice, T* y) {
  const int64_t h = s.height() / P, w = s.width() / P;
  for (int64_t n = 0; n < s.N; ++n) {
    s.pad(x, n);
    for (int64_t i = 0; i < h; ++i) for (int64_t j = 0; j < w; ++j)
      for (int64_t o = 0; o < s.O; o += B * LANES) {
        Vec<T> found[B][P * P];
        values<T, P, B>(s, V, c, i, j, o, found);
        FOR_EACH_VECTOR(b) {
          const int64_t to = ((n * h + i) * w + j) * s.O + o + b * LANES;
          const Mask<T> which = load_choice<T>(choice + to);
          Vec<T> chosen = {};
          FOR_EACH_PIXEL(k) chosen = which == k ? found[b][k] : chosen;
          store<T>(y + to, chosen);
        }
      }
  }
}

// U[t, o] = sum over outputs of g patch[t] at the pixel that was chosen, s1[o] = sum of g there
template <typename T, int P, int B>
void sums(Images<T> s, const T* g, const T* x, const uint8_t* choice, T* U, T* s1) {
  const int64_t h = s.height() / P, w = s.width() / P;
  std::vector<double> total((s.K + 1) * s.O, 0.0);
  std::vector<T> row((s.K + 1) * s.O);
  for (int64_t n = 0; n < s.N; ++n) {
    s.pad(x, n);
    for (int64_t i = 0; i < h; ++i) {
      std::fill(row.begin(), row.end(), T(0));
      for (int64_t o = 0; o < s.O; o += B * LANES) for (int64_t t0 = 0; t0 < s.K; t0 += 9) {  // sums in registers
        Vec<T> sum[9][B] = {}, all[B] = {};
        for (int64_t j = 0; j < w; ++j) {
          const int64_t from = ((n * h + i) * w + j) * s.O + o;
          FOR_EACH_PIXEL(k) {
            const T* patch = s.patch(i * P + k / P, j * P + k % P) + s.offset[t0];
            Vec<T> here[B];
            FOR_EACH_VECTOR(b) {
              const int64_t out = from + b * LANES;
              here[b] = load_choice<T>(choice + out) == k ? load<T>(g + out) : Vec<T>{};
              all[b] += here[b];
            }
            _Pragma("GCC unroll 9") for (int t = 0; t < 9; ++t) {
              const T number = patch[t / 3 * s.wide + t % 3];
              FOR_EACH_VECTOR(b) sum[t][b] += number * here[b];
            }
          }
        }
        FOR_EACH_VECTOR(b) {
          for (int t = 0; t < 9; ++t) store<T>(&row[(t0 + t) * s.O + o + b * LANES], sum[t][b]);
          store<T>(&row[s.K * s.O + o + b * LANES], all[b]);
        }
      }
      for (size_t k = 0; k < row.size(); ++k) total[k] += row[k];
    }
  }
  for (int64_t k = 0; k < s.K * s.O; ++k) U[k] = total[k];
  for (int64_t o = 0; o < s.O; ++o) s1[o] = total[s.K * s.O + o];
}

}  // namespace

#define IMAGES(T) Images<T>(N, I, H, W, O, stride)
#define TWO_AT_ONCE(function, T, P, ...)                                                   \
  do {                                                                                     \
    if (REGISTERS == 32 && O % (2 * LANES) == 0) function<T, P, 2>(IMAGES(T), __VA_ARGS__); \
    else function<T, P, 1>(IMAGES(T), __VA_ARGS__);                                        \
  } while (0)
#define NUMBERS int64_t N, int64_t I, int64_t H, int64_t W, int64_t O, int64_t stride

#define EXPORT(T, P)                                                                                             \
  extern "C" void choose_##P##_##T(NUMBERS, const T* V, const T* c, const T* x, T* y, uint8_t* choice) {         \
    TWO_AT_ONCE(choose, T, P, V, c, x, y, choice);                                                               \
  }                                                                                                              \
  extern "C" void at_##P##_##T(NUMBERS, const T* V, const T* c, const T* x, const uint8_t* choice, T* y) {       \
    TWO_AT_ONCE(at, T, P, V, c, x, choice, y);                                                                   \
  }                                                                                                              \
  extern "C" void sums_##P##_##T(NUMBERS, const T* g, const T* x, const uint8_t* choice, T* U, T* s1) {          \
    TWO_AT_ONCE(sums, T, P, g, x, choice, U, s1);                                                                \
  }

#define EXPORT_MOMENTS(T)                                                                       \
  extern "C" void moments_##T(NUMBERS, const T* x, double* first, double* second) {             \
    moments<T>(IMAGES(T), x, first, second);                                                    \
  }

EXPORT(float, 1)
EXPORT(float, 2)
EXPORT(double, 1)
EXPORT(double, 2)
EXPORT_MOMENTS(float)
EXPORT_MOMENTS(double)
