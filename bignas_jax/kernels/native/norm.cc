// Batch norm, activation and the gate of squeeze-and-excitation in few passes over memory, forward and backward.
//
// All arrays are float32 and row-major. x, g and the outputs of their size are [N, P, C]: images, positions, channels.
// mean, inverse (1 / standard deviation), scale and bias are [C]; z = (x - mean) * inverse * scale + bias. gate and
// extra are [N, C]; a residual is of the size of x. Channels from used[0] on belong to the bucket but not to the sampled
// architecture: their results are zeros.
//
// Rows are summed in fixed runs, and the partial sums are added in a fixed order, so that the bits do not depend on the
// threads.

#include <vector>

#include "common.h"

namespace bignas {
namespace {

constexpr int64_t kRows = 4;  // rows that one loop over the channels processes together

struct Shape {
  int64_t images, positions, channels, used;
  int64_t rows() const { return images * positions; }
};

Shape shape_of(const Floats& x, const Ints& used) {
  auto d = x.dimensions();
  return {d[0], d[1], d[2], std::clamp<int64_t>(used.typed_data()[0], 0, d[2])};
}

// Calls f(rows, first row) with `kRows` rows at a time, then with single rows. A call never crosses images.
template <typename F>
void for_rows(int64_t begin, int64_t end, int64_t positions, F&& f) {
  for (int64_t row = begin; row < end;) {
    const int64_t stop = std::min(end, (row / positions + 1) * positions);
    for (; row + kRows <= stop; row += kRows) f(std::integral_constant<int64_t, kRows>{}, row);
    for (; row < stop; ++row) f(std::integral_constant<int64_t, 1>{}, row);
  }
}

void zero_unused(float* rows, int64_t count, const Shape& s) {
  if (s.used == s.channels) return;
  for (int64_t r = 0; r < count; ++r) std::fill(rows + r * s.channels + s.used, rows + (r + 1) * s.channels, 0.0f);
}

// Adds up partial sums [count, size] in order.
void add_up(const std::vector<float>& partial, int64_t count, int64_t size, float* total) {
  std::copy(partial.begin(), partial.begin() + size, total);
  for (int64_t k = 1; k < count; ++k)
    for (int64_t i = 0; i < size; ++i) total[i] += partial[k * size + i];
}

// The vectors [C] that normalise.
struct Affine {
  const float *mean, *inverse, *scale, *bias;

  template <int w>
  struct At {
    typename Lanes<w>::Vec mean, inverse, scale, bias;
    auto normal(typename Lanes<w>::Vec x) const { return (x - mean) * inverse; }
    auto z(typename Lanes<w>::Vec x) const { return normal(x) * scale + bias; }
  };
  template <int w>
  At<w> at(Lanes<w>, int64_t c) const {
    using L = Lanes<w>;
    return {L::load(mean + c), L::load(inverse + c), L::load(scale + c), L::load(bias + c)};
  }
};

Affine affine_of(const Floats& mean, const Floats& inverse, const Floats& scale, const Floats& bias) {
  return {mean.typed_data(), inverse.typed_data(), scale.typed_data(), bias.typed_data()};
}

// Mean and biased variance. A value of the data is subtracted before squaring: the squares do not cancel when the mean
// is large.
ffi::Error moments(ffi::ThreadPool pool, Floats x, Ints used, FloatsOut mean, FloatsOut variance) {
  const Shape s = shape_of(x, used);
  const float* data = x.typed_data();
  const Runs runs(s.rows());
  std::vector<float> partial(runs.count() * 2 * s.channels, 0.0f);
  parallel_for(pool, runs.count(), [&](int64_t run) {
    float* sum = partial.data() + run * 2 * s.channels;
    float* square = sum + s.channels;
    for_rows(runs.begin(run), runs.end(run), s.positions, [&](auto rows, int64_t row) {
      const float* from = data + row * s.channels;
      for_channels(s.used, [&](auto lanes, int64_t c) {
        using L = decltype(lanes);
        const auto pivot = L::load(data + c);
        auto total = L::all(0.0f), squares = L::all(0.0f);
        for (int64_t r = 0; r < rows; ++r) {
          const auto d = L::load(from + r * s.channels + c) - pivot;
          total += d;
          squares += d * d;
        }
        L::store(sum + c, L::load(sum + c) + total);
        L::store(square + c, L::load(square + c) + squares);
      });
    });
  });
  std::vector<float> total(2 * s.channels);
  add_up(partial, runs.count(), 2 * s.channels, total.data());
  const float count = static_cast<float>(s.rows());
  for (int64_t c = 0; c < s.channels; ++c) {
    const bool in_use = c < s.used;
    const float shift = total[c] / count;
    mean->typed_data()[c] = in_use ? data[c] + shift : 0.0f;
    const float found = total[s.channels + c] / count - shift * shift;
    variance->typed_data()[c] = !in_use ? 0.0f : found < 0.0f ? 0.0f : found;
  }
  return ffi::Error::Success();
}

// Calls f(image, begin, end) for all images and used channels, in enough pieces for several threads.
template <typename F>
void for_images(ffi::ThreadPool& pool, const Shape& s, F&& f) {
  const int64_t wanted = s.images >= 8 ? 1 : (8 + s.images - 1) / s.images;
  const int64_t slab = std::max<int64_t>(64, (s.channels / wanted + 63) / 64 * 64);
  const int64_t slabs = (s.channels + slab - 1) / slab;
  parallel_for(pool, s.images * slabs, [&](int64_t task) {
    const int64_t begin = task % slabs * slab;
    if (begin < s.used) f(task / slabs, begin, std::min(s.used, begin + slab));
  });
}

// out [N, C]: the mean of activation(z) over the positions.
template <typename A>
void pool_images(ffi::ThreadPool& pool, const Shape& s, const float* x, const Affine& affine, float* out) {
  std::fill(out, out + s.images * s.channels, 0.0f);
  for_images(pool, s, [&](int64_t n, int64_t begin, int64_t end) {
    float* sum = out + n * s.channels;
    for_rows(n * s.positions, (n + 1) * s.positions, s.positions, [&](auto rows, int64_t row) {
      for_channels(end, [&](auto lanes, int64_t c) {
        using L = decltype(lanes);
        const auto at = affine.at(lanes, c);
        auto total = L::load(sum + c);
        for (int64_t r = 0; r < rows; ++r)
          total += A::template value<L::size>(at.z(L::load(x + (row + r) * s.channels + c)));
        L::store(sum + c, total);
      }, begin);
    });
    for (int64_t c = begin; c < end; ++c) sum[c] /= static_cast<float>(s.positions);
  });
}

// y = activation(z), multiplied by the gate if there is one, plus the residual if there is one.
template <typename A, bool gated, bool added>
void apply_rows(ffi::ThreadPool& pool, const Shape& s, const float* x, const Affine& affine, const float* gate,
                const float* residual, float* y) {
  const Runs runs(s.rows());
  parallel_for(pool, runs.count(), [&](int64_t run) {
    for_rows(runs.begin(run), runs.end(run), s.positions, [&](auto rows, int64_t row) {
      const float* gates = gated ? gate + row / s.positions * s.channels : nullptr;
      for_channels(s.used, [&](auto lanes, int64_t c) {
        using L = decltype(lanes);
        const auto at = affine.at(lanes, c);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = (row + r) * s.channels + c;
          auto value = A::template value<L::size>(at.z(L::load(x + i)));
          if constexpr (gated) value *= L::load(gates + c);
          if constexpr (added) value += L::load(residual + i);
          L::store(y + i, value);
        }
      });
      zero_unused(y + row * s.channels, rows, s);
    });
  });
}

// out [5, N, C]: the sums over the positions of g activation(z), g slope(z), slope(z), g slope(z) n and slope(z) n,
// where n is the normalised x. The first is the gradient of the gate. The gradients of bias and scale are computed from
// the others, the gate and `extra`.
template <typename A>
void gate_sums_images(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* g, const Affine& affine,
                      float* out) {
  constexpr int kSums = 5;
  const int64_t step = s.images * s.channels;
  std::fill(out, out + kSums * step, 0.0f);
  for_images(pool, s, [&](int64_t n, int64_t begin, int64_t end) {
    float* sums = out + n * s.channels;
    for_rows(n * s.positions, (n + 1) * s.positions, s.positions, [&](auto rows, int64_t row) {
      for_channels(end, [&](auto lanes, int64_t c) {
        using L = decltype(lanes);
        const auto at = affine.at(lanes, c);
        typename L::Vec total[kSums];
        for (int k = 0; k < kSums; ++k) total[k] = L::load(sums + k * step + c);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = (row + r) * s.channels + c;
          const auto grad = L::load(g + i), normal = at.normal(L::load(x + i));
          const auto z = normal * at.scale + at.bias;
          const auto [value, slope] = A::template both<L::size>(z);
          const auto product = grad * slope;
          total[0] += grad * value;
          total[1] += product;
          total[2] += slope;
          total[3] += product * normal;
          total[4] += slope * normal;
        }
        for (int k = 0; k < kSums; ++k) L::store(sums + k * step + c, total[k]);
      }, begin);
    });
  });
}

// The gradient with respect to z: (g * gate + extra) * slope(z), or g * slope(z) without a gate.
template <typename A, bool gated, int w>
inline auto inner(const Affine::At<w>& at, typename Lanes<w>::Vec x, typename Lanes<w>::Vec g, const float* gate,
                  const float* extra) {
  if constexpr (gated) g = g * Lanes<w>::load(gate) + Lanes<w>::load(extra);
  return g * A::template slope<w>(at.z(x));
}

// d_bias and d_scale: the sums over images and positions of the gradient with respect to z, and of this gradient times
// the normalised x.
template <typename A>
void reduce_rows(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* g, const Affine& affine,
                 float* d_bias, float* d_scale) {
  const Runs runs(s.rows());
  std::vector<float> partial(runs.count() * 2 * s.channels, 0.0f);
  parallel_for(pool, runs.count(), [&](int64_t run) {
    float* sum = partial.data() + run * 2 * s.channels;
    float* product = sum + s.channels;
    for_rows(runs.begin(run), runs.end(run), s.positions, [&](auto rows, int64_t row) {
      for_channels(s.used, [&](auto lanes, int64_t c) {
        using L = decltype(lanes);
        const auto at = affine.at(lanes, c);
        auto total = L::load(sum + c), products = L::load(product + c);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = (row + r) * s.channels + c;
          const auto from = L::load(x + i);
          const auto d = inner<A, false>(at, from, L::load(g + i), nullptr, nullptr);
          total += d;
          products += d * at.normal(from);
        }
        L::store(sum + c, total);
        L::store(product + c, products);
      });
    });
  });
  std::vector<float> total(2 * s.channels);
  add_up(partial, runs.count(), 2 * s.channels, total.data());
  std::copy(total.begin(), total.begin() + s.channels, d_bias);
  std::copy(total.begin() + s.channels, total.end(), d_scale);
}

// dx = scale * inverse * (d - mean_g - normalised x * mean_gn), where d is the gradient with respect to z; mean_g and
// mean_gn are [C].
template <typename A, bool gated>
void input_rows(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* g, const Affine& affine,
                const float* gate, const float* extra, const float* mean_g, const float* mean_gn, float* dx) {
  const Runs runs(s.rows());
  parallel_for(pool, runs.count(), [&](int64_t run) {
    for_rows(runs.begin(run), runs.end(run), s.positions, [&](auto rows, int64_t row) {
      const int64_t image = row / s.positions * s.channels;
      for_channels(s.used, [&](auto lanes, int64_t c) {
        using L = decltype(lanes);
        const auto at = affine.at(lanes, c);
        const auto factor = at.scale * at.inverse, mean = L::load(mean_g + c), slope = L::load(mean_gn + c);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = (row + r) * s.channels + c;
          const auto from = L::load(x + i);
          const auto d = inner<A, gated>(at, from, L::load(g + i), gate + image + c, extra + image + c);
          L::store(dx + i, factor * (d - mean - at.normal(from) * slope));
        }
      });
      zero_unused(dx + row * s.channels, rows, s);
    });
  });
}

ffi::Error pooled(ffi::ThreadPool pool, Floats x, Floats mean, Floats inverse, Floats scale, Floats bias, Ints used,
                  FloatsOut out, int64_t activation) {
  const Shape s = shape_of(x, used);
  const Affine affine = affine_of(mean, inverse, scale, bias);
  return with_activation(activation, [&](auto a) {
    pool_images<decltype(a)>(pool, s, x.typed_data(), affine, out->typed_data());
  });
}

ffi::Error apply(ffi::ThreadPool pool, Floats x, Floats mean, Floats inverse, Floats scale, Floats bias, Floats gate,
                 Floats residual, Ints used, FloatsOut y, int64_t activation, bool gated, bool added) {
  const Shape s = shape_of(x, used);
  const Affine affine = affine_of(mean, inverse, scale, bias);
  return with_activation(activation, [&](auto a) {
    using A = decltype(a);
    auto run = gated ? (added ? apply_rows<A, true, true> : apply_rows<A, true, false>)
                     : (added ? apply_rows<A, false, true> : apply_rows<A, false, false>);
    run(pool, s, x.typed_data(), affine, gate.typed_data(), residual.typed_data(), y->typed_data());
  });
}

ffi::Error gate_sums(ffi::ThreadPool pool, Floats x, Floats g, Floats mean, Floats inverse, Floats scale, Floats bias,
                     Ints used, FloatsOut out, int64_t activation) {
  const Shape s = shape_of(x, used);
  const Affine affine = affine_of(mean, inverse, scale, bias);
  return with_activation(activation, [&](auto a) {
    gate_sums_images<decltype(a)>(pool, s, x.typed_data(), g.typed_data(), affine, out->typed_data());
  });
}

ffi::Error reduce(ffi::ThreadPool pool, Floats x, Floats g, Floats mean, Floats inverse, Floats scale, Floats bias,
                  Ints used, FloatsOut d_bias, FloatsOut d_scale, int64_t activation) {
  const Shape s = shape_of(x, used);
  const Affine affine = affine_of(mean, inverse, scale, bias);
  return with_activation(activation, [&](auto a) {
    reduce_rows<decltype(a)>(pool, s, x.typed_data(), g.typed_data(), affine, d_bias->typed_data(),
                             d_scale->typed_data());
  });
}

ffi::Error input_gradient(ffi::ThreadPool pool, Floats x, Floats g, Floats mean, Floats inverse, Floats scale,
                          Floats bias, Floats gate, Floats extra, Floats mean_g, Floats mean_gn, Ints used,
                          FloatsOut dx, int64_t activation, bool gated) {
  const Shape s = shape_of(x, used);
  const Affine affine = affine_of(mean, inverse, scale, bias);
  return with_activation(activation, [&](auto a) {
    auto run = gated ? input_rows<decltype(a), true> : input_rows<decltype(a), false>;
    run(pool, s, x.typed_data(), g.typed_data(), affine, gate.typed_data(), extra.typed_data(), mean_g.typed_data(),
        mean_gn.typed_data(), dx->typed_data());
  });
}

}  // namespace
}  // namespace bignas

using bignas::Floats;
using bignas::Ints;
#define BEGIN xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()
#define AFFINE Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_norm_moments, bignas::moments,
                              BEGIN.Arg<Floats>().Arg<Ints>().Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_norm_pooled, bignas::pooled,
                              BEGIN.Arg<Floats>().AFFINE.Arg<Ints>().Ret<Floats>().Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bignas_norm_apply, bignas::apply,
    BEGIN.Arg<Floats>().AFFINE.Arg<Floats>().Arg<Floats>().Arg<Ints>().Ret<Floats>().Attr<int64_t>("activation")
        .Attr<bool>("gated").Attr<bool>("added"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bignas_norm_gate_sums, bignas::gate_sums,
    BEGIN.Arg<Floats>().Arg<Floats>().AFFINE.Arg<Ints>().Ret<Floats>().Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bignas_norm_reduce, bignas::reduce,
    BEGIN.Arg<Floats>().Arg<Floats>().AFFINE.Arg<Ints>().Ret<Floats>().Ret<Floats>().Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(bignas_norm_input_gradient, bignas::input_gradient,
                              BEGIN.Arg<Floats>().Arg<Floats>().AFFINE.Arg<Floats>().Arg<Floats>().Arg<Floats>()
                                  .Arg<Floats>().Arg<Ints>().Ret<Floats>().Attr<int64_t>("activation")
                                  .Attr<bool>("gated"));
