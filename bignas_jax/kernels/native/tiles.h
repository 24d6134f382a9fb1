// Matrix products in tiles that stay in registers, for `product.cc` and `convolution.cc`.
//
// Matrices are float32 and row-major. A tile of kTall rows and up to kPanel vectors of columns stays in registers while
// the depth is summed. The kernel is copied into panels of that width first, so that it is read from end to end. Rows
// are divided into fixed runs, and partial sums are added in a fixed order, so that the bits do not depend on the
// threads. The rows of x come from a source, such as `Matrix`: it has a `step` from row to row, and `rows(begin, end,
// scratch)` gives the address of at most kChunk of them, in memory or copied to `scratch()` floats.
#ifndef BIGNAS_JAX_NATIVE_TILES_H_
#define BIGNAS_JAX_NATIVE_TILES_H_

#include <type_traits>
#include <vector>

#include "common.h"

namespace bignas {

constexpr int kTall = kWidth > 8 ? 8 : 4;  // rows of a tile: with kPanel vectors they fill the registers
constexpr int kPanel = 3;                  // vectors of a panel at most
constexpr int64_t kChunk = 128;            // rows that pass through all panels before the next rows do
constexpr int64_t kDeep = 64;              // rows of the kernel's gradient that one task sums
constexpr int64_t kTasks = 32;             // tasks of the kernel's gradient, at least, if there are so many rows
using Wide = Lanes<kWidth>;
using Vec = Wide::Vec;

// Floats at an address that vectors may start at.
class Aligned {
 public:
  explicit Aligned(int64_t size) : floats_(size + kWidth, 0.0f) {
    const auto address = reinterpret_cast<uintptr_t>(floats_.data());
    start_ = floats_.data() + (kAlignment - address % kAlignment) % kAlignment / sizeof(float);
  }
  float* data() { return start_; }
  const float* data() const { return start_; }

 private:
  static constexpr uintptr_t kAlignment = kWidth * sizeof(float);
  std::vector<float> floats_;
  float* start_;
};

// A panel: vectors [first, first + count) of the columns.
struct Panel {
  int64_t first;
  int count;
};

// The columns as panels of up to kPanel vectors. Four are divided into two and two: one alone would feed too few sums.
inline std::vector<Panel> panels_of(int64_t columns) {
  std::vector<Panel> panels;
  for (int64_t v = 0, all = (columns + kWidth - 1) / kWidth; v < all; v += panels.back().count)
    panels.push_back({v, all - v == kPanel + 1 ? 2 : static_cast<int>(std::min<int64_t>(kPanel, all - v))});
  return panels;
}

inline int64_t padded(int64_t columns) { return (columns + kWidth - 1) / kWidth * kWidth; }

// Calls f(integral constant) with the panel's number of vectors.
template <typename F>
void with_count(int count, F&& f) {
  static_assert(kPanel == 3);
  if (count == 1) f(std::integral_constant<int, 1>{});
  if (count == 2) f(std::integral_constant<int, 2>{});
  if (count == 3) f(std::integral_constant<int, 3>{});
}

// A matrix [depth, columns] of any strides, copied into panels.
struct Packed {
  int64_t depth, columns;
  std::vector<Panel> panels;
  Aligned floats;

  Packed(ffi::ThreadPool& pool, const float* from, int64_t depth, int64_t columns, int64_t down, int64_t across)
      : depth(depth), columns(columns), panels(panels_of(columns)), floats(depth * padded(columns)) {
    parallel_for(pool, panels.size(), [&](int64_t p) {
      const int64_t begin = panels[p].first * kWidth, wide = panels[p].count * kWidth;
      const int64_t inside = std::min(wide, columns - begin);
      float* to = floats.data() + begin * depth;
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t c = 0; c < inside; ++c) to[k * wide + c] = from[k * down + (begin + c) * across];
    });
  }
  const float* panel(const Panel& p) const { return floats.data() + p.first * kWidth * depth; }
};

// What batch norm wants to know of the results: sums of the distances from a pivot, and of their squares. All are
// padded to whole vectors.
struct Sums {
  const float* pivot;
  float *total, *squares;
};

// The first `inside` floats of a vector, which may be all.
inline void store_first(float* to, Vec v, int64_t inside) {
  if (inside >= kWidth) return Wide::store(to, v);
  float floats[kWidth];
  Wide::store(floats, v);
  std::memcpy(to, floats, inside * sizeof(float));
}

// The vector, in a register. GCC would otherwise load it again for every product it takes part in, which takes longer
// than the products do.
inline Vec in_register(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// y = x @ panel for `tall` rows. `inside` is the number of columns that are written.
template <int count, int tall, bool summed>
inline void tile(const float* x, int64_t x_step, const float* panel, int64_t depth, float* y, int64_t y_step,
                 int64_t inside, const Sums& sums) {
  Vec total[tall][count];
  for (int i = 0; i < tall; ++i)
    for (int j = 0; j < count; ++j) total[i][j] = Wide::all(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    Vec kernel[count];
    for (int j = 0; j < count; ++j) kernel[j] = in_register(Wide::load(panel + (k * count + j) * kWidth));
    for (int i = 0; i < tall; ++i) {
      const Vec value = Wide::all(x[i * x_step + k]);
      for (int j = 0; j < count; ++j) total[i][j] += value * kernel[j];
    }
  }
  for (int j = 0; j < count; ++j)
    for (int i = 0; i < tall; ++i) store_first(y + i * y_step + j * kWidth, total[i][j], inside - j * kWidth);
  if constexpr (summed) {
    for (int j = 0; j < count; ++j) {
      const Vec pivot = Wide::load(sums.pivot + j * kWidth);
      Vec distances = Wide::all(0.0f), squares = Wide::all(0.0f);
      for (int i = 0; i < tall; ++i) {
        const Vec distance = total[i][j] - pivot;
        distances += distance;
        squares += distance * distance;
      }
      float *to = sums.total + j * kWidth, *to_squares = sums.squares + j * kWidth;
      Wide::store(to, Wide::load(to) + distances);
      Wide::store(to_squares, Wide::load(to_squares) + squares);
    }
  }
}

// The rows of a matrix that lies in memory. `scratch` is what other sources copy rows to: of these none are copied.
struct Matrix {
  const float* floats;
  int64_t step;  // from one row to the next
  int64_t scratch() const { return 0; }
  const float* rows(int64_t begin, int64_t, float*) const { return floats + begin * step; }
};

// y = x @ kernel for rows [begin, end), in chunks that stay in the cache.
template <bool summed, typename Source>
void multiply_rows(const Source& x, const Packed& kernel, float* y, int64_t y_step, int64_t begin, int64_t end,
                   bool whole, const Sums& sums) {
  Aligned scratch(x.scratch());
  for (int64_t row = begin; row < end; row += kChunk) {
    const int64_t stop = std::min(end, row + kChunk);
    const float* from = x.rows(row, stop, scratch.data());
    for (const Panel& p : kernel.panels) {
      const int64_t c = p.first * kWidth;
      const Sums own = summed ? Sums{sums.pivot + c, sums.total + c, sums.squares + c} : sums;
      with_count(p.count, [&](auto count) {
        auto run = [&](auto tall, int64_t r) {
          tile<count(), tall(), summed>(from + (r - row) * x.step, x.step, kernel.panel(p), kernel.depth,
                                        y + r * y_step + c, y_step, kernel.columns - c, own);
        };
        int64_t r = row;
        for (; r + kTall <= stop; r += kTall) run(std::integral_constant<int, kTall>{}, r);
        for (; r < stop; ++r) run(std::integral_constant<int, 1>{}, r);
      });
    }
    if (whole && kernel.columns < y_step)
      for (int64_t r = row; r < stop; ++r) std::fill(y + r * y_step + kernel.columns, y + (r + 1) * y_step, 0.0f);
  }
}

// y [rows, y_step] = x @ kernel.
template <typename Source>
void multiply(ffi::ThreadPool& pool, const Source& x, int64_t rows, const Packed& kernel, float* y, int64_t y_step,
              bool whole) {
  const Runs runs(rows, kTall);
  parallel_for(pool, runs.count(), [&](int64_t run) {
    multiply_rows<false>(x, kernel, y, y_step, runs.begin(run), runs.end(run), whole, {});
  });
}

// The same, and y's mean and biased variance [y_step]. A value of the data is subtracted before squaring: the squares do
// not cancel when the mean is large.
template <typename Source>
void multiply_with_moments(ffi::ThreadPool& pool, const Source& x, int64_t rows, const Packed& kernel, float* y,
                           int64_t y_step, bool whole, float* mean, float* variance) {
  const Runs runs(rows, kTall);
  const int64_t wide = padded(kernel.columns);
  Aligned pivot(wide), partial(std::max<int64_t>(runs.count(), 1) * 2 * wide);
  if (rows > 0) multiply_rows<false>(x, kernel, pivot.data(), kernel.columns, 0, 1, false, {});
  parallel_for(pool, runs.count(), [&](int64_t run) {
    float* sums = partial.data() + run * 2 * wide;
    multiply_rows<true>(x, kernel, y, y_step, runs.begin(run), runs.end(run), whole,
                        {pivot.data(), sums, sums + wide});
  });
  for (int64_t run = 1; run < runs.count(); ++run)
    for (int64_t i = 0; i < 2 * wide; ++i) partial.data()[i] += partial.data()[run * 2 * wide + i];
  const float count = static_cast<float>(rows);
  for (int64_t c = 0; c < y_step; ++c) {
    const bool in_use = c < kernel.columns && rows > 0;
    const float shift = in_use ? partial.data()[c] / count : 0.0f;
    const float found = in_use ? partial.data()[wide + c] / count - shift * shift : 0.0f;
    mean[c] = in_use ? pivot.data()[c] + shift : 0.0f;
    variance[c] = found < 0.0f ? 0.0f : found;
  }
}

struct Used {
  int64_t inputs, outputs;
  Used(const Ints& used, int64_t all_inputs, int64_t all_outputs)
      : inputs(std::clamp<int64_t>(used.typed_data()[0], 0, all_inputs)),
        outputs(std::clamp<int64_t>(used.typed_data()[1], 0, all_outputs)) {}
};

// Adds x transposed @ g over `rows` rows to `to` [tall, ...], for `tall` channels of x and a panel of g.
template <int count, int tall>
inline void gradient_tile(const float* x, int64_t x_step, const float* g, int64_t g_step, int64_t rows, float* to,
                          int64_t to_step) {
  Vec total[tall][count];
  for (int i = 0; i < tall; ++i)
    for (int j = 0; j < count; ++j) total[i][j] = Wide::load(to + i * to_step + j * kWidth);
  for (int64_t r = 0; r < rows; ++r) {
    Vec from[count];
    for (int j = 0; j < count; ++j) from[j] = in_register(Wide::load(g + r * g_step + j * kWidth));
    for (int i = 0; i < tall; ++i) {
      const Vec value = Wide::all(x[r * x_step + i]);
      for (int j = 0; j < count; ++j) total[i][j] += value * from[j];
    }
  }
  for (int i = 0; i < tall; ++i)
    for (int j = 0; j < count; ++j) Wide::store(to + i * to_step + j * kWidth, total[i][j]);
}

// d_kernel [inputs, outputs] = x transposed @ g [rows, outputs]: zeros where a channel is not sampled. A task sums one
// panel of the outputs, kDeep of the inputs, and one run of the rows. There are several runs only if there are few such
// pieces of the kernel: each run has a whole kernel to be added.
template <typename Source>
void sum_kernel_gradient(ffi::ThreadPool& pool, const Source& x, int64_t rows, const float* g, const Used& used,
                         int64_t inputs, int64_t outputs, float* d_kernel) {
  const std::vector<Panel> panels = panels_of(used.outputs);
  const int64_t pieces = panels.size() * ((used.inputs + kDeep - 1) / kDeep), wide = padded(used.outputs);
  const int64_t wanted = pieces == 0 ? 1 : (kTasks + pieces - 1) / pieces;
  const int64_t length = std::max(kChunk, ((rows + wanted - 1) / wanted + kChunk - 1) / kChunk * kChunk);
  const int64_t runs = std::max<int64_t>(1, (rows + length - 1) / length);
  Aligned partial(runs * used.inputs * wide);
  parallel_for(pool, runs * pieces, [&](int64_t task) {
    const int64_t run = task / pieces, piece = task % pieces, number = panels.size();
    const Panel& p = panels[piece % number];
    const int64_t c = p.first * kWidth, first = piece / number * kDeep, last = std::min(used.inputs, first + kDeep);
    const int64_t width = p.count * kWidth, end = std::min(rows, (run + 1) * length);
    float* sums = partial.data() + run * used.inputs * wide + c;
    // Vectors may reach beyond the sampled channels, where what they sum is dropped, but not beyond a row.
    const bool copied = c + width > outputs;
    Aligned copy(copied ? kChunk * width : 0), scratch(x.scratch());
    for (int64_t row = run * length; row < end; row += kChunk) {
      const int64_t count = std::min(kChunk, end - row);
      const float *values = x.rows(row, row + count, scratch.data()), *from = g + row * outputs + c;
      if (copied) {
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(copy.data() + r * width, from + r * outputs, (used.outputs - c) * sizeof(float));
        from = copy.data();
      }
      with_count(p.count, [&](auto vectors) {
        auto add = [&](auto tall, int64_t k) {
          gradient_tile<vectors(), tall()>(values + k, x.step, from, copied ? width : outputs,
                                           count, sums + k * wide, wide);
        };
        int64_t k = first;
        for (; k + kTall <= last; k += kTall) add(std::integral_constant<int, kTall>{}, k);
        for (; k < last; ++k) add(std::integral_constant<int, 1>{}, k);
      });
    }
  });
  parallel_for(pool, (inputs + kDeep - 1) / kDeep, [&](int64_t part) {
    for (int64_t k = part * kDeep; k < std::min(inputs, (part + 1) * kDeep); ++k) {
      float* to = d_kernel + k * outputs;
      const int64_t sampled = k < used.inputs ? used.outputs : 0;
      for (int64_t run = 0; run < runs; ++run) {
        const float* from = partial.data() + (run * used.inputs + k) * wide;
        for (int64_t c = 0; c < sampled; ++c) to[c] = run == 0 ? from[c] : to[c] + from[c];
      }
      std::fill(to + sampled, to + outputs, 0.0f);
    }
  });
}

// The binding of a kernel that takes two arrays and the sampled counts, and whose first result is an array.
inline auto binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Ints>().Ret<Floats>();
}

}  // namespace bignas

#endif  // BIGNAS_JAX_NATIVE_TILES_H_
