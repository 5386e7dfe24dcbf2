// How A and B lie in memory for the tiles of tokens.h and channels.h. Packed once when they are constant.
//
// Tokens, A (D, r): panels of down_panel(r) columns, the last one rounded up to whole vectors, each a (D, panel) array;
// but for r <= kDotRank its transpose, rows rounded up to whole vectors, in groups of four rows.
// Tokens, B (R, D): panels of kUpPanel columns, each an (R, panel) array; the last one rounded up to whole vectors.
// Channels, A (D, r) and B^T (D, R): groups of kGroup columns of A, each (D, kGroup); groups of kGroup rows of B^T,
// each transposed to (R, kGroup). What is rounded up is filled with zeros.
#pragma once

#include "job.h"
#include "simd.h"

namespace laurel::LAUREL_PATH {

constexpr int kPanel = (kRegisters == 32 ? 2 : 3) * kWidth;
constexpr int kUpPanel = (kRegisters == 32 ? 3 : 2) * kWidth;
constexpr int kDotRank = kWidth / 2;
constexpr int kGroup = kRegisters == 32 ? 8 : 4;

LAUREL_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
LAUREL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LAUREL_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Columns of a panel of A: as few panels as kPanel allows, of nearly equal size, for a narrow one has too few sums.
LAUREL_INLINE int64_t down_panel(int64_t rank) {
  const int64_t panels = (rank + kPanel - 1) / kPanel;
  return round_up((rank + panels - 1) / panels, kWidth);
}

inline size_t down_size(bool channels, int64_t width, int64_t rank) {
  if (channels) return width * round_up(rank, kGroup);
  return rank <= kDotRank ? round_up(rank, 4) * round_up(width, kWidth) : width * round_up(rank, kWidth);
}

inline size_t up_size(bool channels, int64_t width, int64_t rank) {
  return rank * round_up(width, channels ? kGroup : kWidth);
}

template <typename T>
float to_float(T value) {
  return load_part(&value, 1)[0];
}
inline float to_float(float value) { return value; }

// out[panel][i][j] = from[i * row_step + (panel * unit + j) * column_step], i < rows; columns are cut into panels of
// `unit`, the last one rounded up to `round`; rows [first, first + rows) of `total`.
template <typename T>
void pack_panels(const T* from, int64_t row_step, int64_t column_step, int64_t rows, int64_t first, int64_t total,
                 int64_t columns, int64_t unit, int64_t round, float* out) {
  for (int64_t start = 0; start < columns; start += unit) {
    const int64_t panel = smaller(unit, round_up(columns - start, round));
    float* to = out + start * total + first * panel;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < panel; ++j) {
        const int64_t column = start + j;
        to[i * panel + j] = column < columns ? to_float(from[i * row_step + column * column_step]) : 0.0f;
      }
    }
  }
}

template <typename T>
void pack_down_as(bool channels, const T* A, int64_t width, int64_t rank, float* out) {
  if (channels) {
    pack_panels(A, rank, 1, width, 0, width, rank, kGroup, kGroup, out);
  } else if (rank > kDotRank) {
    pack_panels(A, rank, 1, width, 0, width, rank, down_panel(rank), kWidth, out);
  } else {
    const int64_t padded = round_up(width, kWidth);
    for (int64_t j = 0; j < round_up(rank, 4); ++j) {
      for (int64_t i = 0; i < padded; ++i) {
        out[j * padded + i] = i < width && j < rank ? to_float(A[i * rank + j]) : 0.0f;
      }
    }
  }
}

template <typename T>
void pack_up_as(bool channels, const T* B, int64_t width, int64_t rank, int64_t first, int64_t total, float* out) {
  const int64_t unit = channels ? kGroup : kUpPanel;
  pack_panels(B, width, 1, rank, first, total, width, unit, channels ? kGroup : kWidth, out);
}

template <typename T>
const T* as(const void* data, T*) {
  return static_cast<const T*>(data);
}

// Calls `function` with a null pointer of the element type.
template <typename Function>
void with_type(Type type, Function function) {
  switch (type) {
    case Type::kFloat: return function(static_cast<float*>(nullptr));
    case Type::kFloat16: return function(static_cast<Half*>(nullptr));
    case Type::kBFloat16: return function(static_cast<Brain*>(nullptr));
    case Type::kDouble: return;
  }
}

inline void pack_down(bool channels, const void* A, Type type, int64_t width, int64_t rank, float* out) {
  with_type(type, [=](auto* null) {
    pack_down_as(channels, as(A, null), width, rank, out);
  });
}

inline void pack_up(bool channels, const void* B, Type type, int64_t width, int64_t rank, int64_t first,
                    int64_t total, float* out) {
  with_type(type, [=](auto* null) {
    pack_up_as(channels, as(B, null), width, rank, first, total, out);
  });
}

inline void convert(const void* from, Type type, int64_t n, float* to) {
  with_type(type, [=](auto* null) {
    const auto* values = as(from, null);
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(values[i]);
  });
}

}  // namespace laurel::LAUREL_PATH
