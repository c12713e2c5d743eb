// Attention over a KV cache in bfloat16. Grouped queries, which share keys and values, are handled together.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "simd.h"

namespace superdraft {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int kColumns = 4;  // vectors of a product's row that are summed together
constexpr int kKeyBlock = kColumns * kLanes;
constexpr int kQueryBlock = 96;  // queries, positions times heads, that read a block of keys together
// Long texts are read in parts, so that several threads share them. Parts begin at multiples of this, and their results
// are joined in order: the sums do not depend on the threads.
constexpr int kPart = 256;

// One layer's keys or values of one head in one slot: cells [0, max_len), each `head_dim` numbers in a row.
struct Attended {
    const uint16_t* keys;
    const uint16_t* values;
    int num_groups;  // queries that share these keys and values
    int head_dim;
    float scaling;
};

// Where the keys and values of a text's positions are: the first `base` in the cells of the same number, the others in
// those of a path through the slot's tree.
struct Places {
    int base;
    const int32_t* path;

    int cell(int position) const { return position < base ? position : path[position - base]; }
};

// One query, and what it has gathered from some positions, before it is divided by the sum.
struct Query {
    const float* values;  // [head_dim]
    float* largest;       // the largest score
    float* sum;           // the sum of e^(score - largest)
    float* mixed;         // [head_dim], values weighted by e^(score - largest)
};

// Attention of some queries to the same positions, whose keys and values are in `cells` [count]; null: in the cells
// [begin, begin + count). A query's sums do not depend on the others.
template <int kQueries>
inline void attend_queries(const Attended& head, const Query* queries, int begin, int count, const int32_t* cells) {
    const int dim = head.head_dim;
    const auto place = [&](int i) { return (ptrdiff_t)(cells == nullptr ? begin + i : cells[i]) * dim; };
    alignas(64) float scores[kQueries][kPart];
    Floats highest[kQueries];
    for (int query = 0; query < kQueries; ++query) highest[query] = splat(kNever);
    for (int first = 0; first < count; first += kLanes) {
        Floats products[kQueries][kLanes];
        for (int i = 0; i < kLanes; ++i) {
            for (int query = 0; query < kQueries; ++query)
                products[query][i] = first + i < count ? Floats{} : splat(kNever);
            if (first + i >= count) continue;
            const uint16_t* key = head.keys + place(first + i);
            for (int d = 0; d < dim; d += kLanes) {
                const Floats part = from_bfloat16(key + d);
                for (int query = 0; query < kQueries; ++query)
                    products[query][i] += part * load<Floats>(queries[query].values + d);
            }
        }
        for (int query = 0; query < kQueries; ++query) {
            const Floats found = sums(products[query]) * head.scaling;
            highest[query] = larger(highest[query], found);
            store(scores[query] + first, found);
        }
    }
    for (int query = 0; query < kQueries; ++query) {
        const float largest = maximum(highest[query]);
        Floats total{};
        for (int first = 0; first < count; first += kLanes) {
            const Floats found = load<Floats>(scores[query] + first);
            const Floats weights = found == kNever ? Floats{} : exponential(found - largest);
            store(scores[query] + first, weights);
            total += weights;
        }
        *queries[query].largest = largest;
        *queries[query].sum = sum(total);
    }
    for (int column = 0; column < dim; column += kColumns * kLanes) {
        const int num_vectors = std::min(kColumns, (dim - column) / kLanes);
        Floats mixed[kQueries][kColumns];
        for (int query = 0; query < kQueries; ++query)
            for (int v = 0; v < kColumns; ++v) mixed[query][v] = Floats{};
        if (num_vectors == kColumns) {
            for (int i = 0; i < count; ++i) {
                const uint16_t* values = head.values + place(i) + column;
                for (int v = 0; v < kColumns; ++v) {
                    const Floats part = from_bfloat16(values + v * kLanes);
                    for (int query = 0; query < kQueries; ++query) mixed[query][v] += part * scores[query][i];
                }
            }
        } else {
            for (int i = 0; i < count; ++i) {
                const uint16_t* values = head.values + place(i) + column;
                for (int v = 0; v < num_vectors; ++v) {
                    const Floats part = from_bfloat16(values + v * kLanes);
                    for (int query = 0; query < kQueries; ++query) mixed[query][v] += part * scores[query][i];
                }
            }
        }
        for (int query = 0; query < kQueries; ++query)
            for (int v = 0; v < num_vectors; ++v)
                store(queries[query].mixed + column + v * kLanes, mixed[query][v]);
    }
}

// `attend_queries` for a number of queries that is known at run time, at most kPart positions.
inline void attend(
    const Attended& head, const Query* queries, int num_queries, int begin, int count, const int32_t* cells) {
    for (int first = 0; first < num_queries; first += 4)
        switch (std::min(4, num_queries - first)) {
            case 1: attend_queries<1>(head, queries + first, begin, count, cells); break;
            case 2: attend_queries<2>(head, queries + first, begin, count, cells); break;
            case 3: attend_queries<3>(head, queries + first, begin, count, cells); break;
            default: attend_queries<4>(head, queries + first, begin, count, cells);
        }
}

// to[kRows, 16 kVectors] (+)= a[kRows, depth] b[depth, 16 kVectors]
template <int kRows, int kVectors>
inline void tile(
    const float* a, ptrdiff_t a_stride, const float* b, ptrdiff_t b_stride, int depth, float* to, ptrdiff_t stride,
    bool adds) {
    Floats totals[kRows][kVectors];
    for (int row = 0; row < kRows; ++row)
        for (int v = 0; v < kVectors; ++v)
            totals[row][v] = adds ? load<Floats>(to + row * stride + v * kLanes) : Floats{};
    for (int k = 0; k < depth; ++k) {
        Floats right[kVectors];
        for (int v = 0; v < kVectors; ++v) right[v] = load<Floats>(b + k * b_stride + v * kLanes);
        for (int row = 0; row < kRows; ++row) {
            const Floats left = splat(a[row * a_stride + k]);
            for (int v = 0; v < kVectors; ++v) totals[row][v] += left * right[v];
        }
    }
    for (int row = 0; row < kRows; ++row)
        for (int v = 0; v < kVectors; ++v) store(to + row * stride + v * kLanes, totals[row][v]);
}

template <int kVectors>
inline void tiles(
    const float* a, ptrdiff_t a_stride, const float* b, ptrdiff_t b_stride, int num_rows, int depth, float* to,
    ptrdiff_t stride, bool adds) {
#ifdef __AVX512F__
    constexpr int kRows = 6;  // 24 of 32 registers hold sums
#else
    constexpr int kRows = 1;  // 8 of 16
#endif
    int row = 0;
    for (; row + kRows <= num_rows; row += kRows)
        tile<kRows, kVectors>(a + row * a_stride, a_stride, b, b_stride, depth, to + row * stride, stride, adds);
    for (; row < num_rows; ++row)
        tile<1, kVectors>(a + row * a_stride, a_stride, b, b_stride, depth, to + row * stride, stride, adds);
}

// `tiles` for a number of vectors that is known at run time, at most kColumns.
inline void columns(
    int num_vectors, const float* a, ptrdiff_t a_stride, const float* b, ptrdiff_t b_stride, int num_rows, int depth,
    float* to, ptrdiff_t stride, bool adds) {
    switch (num_vectors) {
        case 1: return tiles<1>(a, a_stride, b, b_stride, num_rows, depth, to, stride, adds);
        case 2: return tiles<2>(a, a_stride, b, b_stride, num_rows, depth, to, stride, adds);
        case 3: return tiles<3>(a, a_stride, b, b_stride, num_rows, depth, to, stride, adds);
        default: return tiles<kColumns>(a, a_stride, b, b_stride, num_rows, depth, to, stride, adds);
    }
}

// Memory that one thread needs to attend with a block of queries.
struct BlockMemory {
    float* queries;  // [kQueryBlock, head_dim]
    float* mixed;    // [kQueryBlock, head_dim]
    float* scores;   // [kQueryBlock, kKeyBlock]
    float* keys;     // [head_dim, kKeyBlock]
    float* values;   // [kKeyBlock, head_dim]
    float* largest;  // [kQueryBlock]
    float* sums;     // [kQueryBlock]

    static size_t size(int head_dim) { return (size_t)(2 * kQueryBlock + 2 * kKeyBlock) * head_dim + kQueryBlock * (kKeyBlock + 2); }

    BlockMemory(float* memory, int head_dim)
        : queries(memory),
          mixed(queries + kQueryBlock * head_dim),
          scores(mixed + kQueryBlock * head_dim),
          keys(scores + kQueryBlock * kKeyBlock),
          values(keys + kKeyBlock * head_dim),
          largest(values + kKeyBlock * head_dim),
          sums(largest + kQueryBlock) {}
};

// Attention of consecutive positions [start, start + count), each to itself and earlier ones, at most `window` in all.
// count * groups <= kQueryBlock. Queries and results of position i begin at i * stride; a head's follow one another.
inline void attend_block(
    const Attended& head, const Places& places, const float* queries, ptrdiff_t query_stride, int start, int count,
    int window, float* to, ptrdiff_t stride, BlockMemory memory) {
    const int dim = head.head_dim, groups = head.num_groups, num_rows = count * groups;
    for (int row = 0; row < num_rows; ++row) {
        const float* query = queries + (row / groups) * query_stride + (row % groups) * dim;
        for (int d = 0; d < dim; d += kLanes)
            store(memory.queries + row * dim + d, load<Floats>(query + d) * head.scaling);
    }
    std::fill_n(memory.mixed, num_rows * dim, 0.0f);
    std::fill_n(memory.largest, num_rows, kNever);
    std::fill_n(memory.sums, num_rows, 0.0f);
    const int stop = start + count;
    const int earliest = std::max(0, start - window + 1) / kKeyBlock * kKeyBlock;
    for (int first = earliest; first < stop; first += kKeyBlock) {
        const int num_keys = std::min(kKeyBlock, stop - first);
        // What lies beyond the text must not be read: it may be anything.
        if (num_keys < kKeyBlock) {
            std::fill_n(memory.keys, kKeyBlock * dim, 0.0f);
            std::fill_n(memory.values, kKeyBlock * dim, 0.0f);
        }
        for (int key = 0; key < num_keys; ++key) {
            const ptrdiff_t place = (ptrdiff_t)places.cell(first + key) * dim;
            for (int d = 0; d < dim; d += kLanes) {
                store(memory.values + key * dim + d, from_bfloat16(head.values + place + d));
                alignas(64) float parts[kLanes];
                store(parts, from_bfloat16(head.keys + place + d));
                for (int i = 0; i < kLanes; ++i) memory.keys[(d + i) * kKeyBlock + key] = parts[i];
            }
        }
        const int num_vectors = (num_keys + kLanes - 1) / kLanes;
        columns(num_vectors, memory.queries, dim, memory.keys, kKeyBlock, num_rows, dim, memory.scores, kKeyBlock, false);
        for (int row = 0; row < num_rows; ++row) {
            const int position = start + row / groups;
            const int low = position - window + 1 - first, high = position - first;  // keys [low, high] are seen
            float* scores = memory.scores + row * kKeyBlock;
            if (low > 0 || high < kKeyBlock - 1)
                for (int key = 0; key < num_vectors * kLanes; ++key)
                    if (key < low || key > high) scores[key] = kNever;
            Floats highest = splat(memory.largest[row]);
            for (int v = 0; v < num_vectors * kLanes; v += kLanes) highest = larger(highest, load<Floats>(scores + v));
            const float largest = maximum(highest);
            if (largest == kNever) {  // no key seen so far
                std::fill_n(scores, kKeyBlock, 0.0f);
                continue;
            }
            Floats total{};
            for (int v = 0; v < num_vectors * kLanes; v += kLanes) {
                const Floats found = load<Floats>(scores + v);
                const Floats weights = found == kNever ? Floats{} : exponential(found - largest);
                store(scores + v, weights);
                total += weights;
            }
            float* mixed = memory.mixed + row * dim;
            if (largest != memory.largest[row] && memory.largest[row] != kNever) {
                const float shrink = std::exp(memory.largest[row] - largest);
                memory.sums[row] *= shrink;
                for (int d = 0; d < dim; d += kLanes) store(mixed + d, load<Floats>(mixed + d) * shrink);
            }
            memory.largest[row] = largest;
            memory.sums[row] += sum(total);
        }
        for (int d = 0; d < dim; d += kColumns * kLanes)
            columns(std::min(kColumns, (dim - d) / kLanes), memory.scores, kKeyBlock, memory.values + d, dim, num_rows,
                    num_keys, memory.mixed + d, dim, true);
    }
    for (int row = 0; row < num_rows; ++row) {
        const float inverse = 1.0f / memory.sums[row];
        float* place = to + (row / groups) * stride + (row % groups) * dim;
        for (int d = 0; d < dim; d += kLanes) store(place + d, load<Floats>(memory.mixed + row * dim + d) * inverse);
    }
}

}  // namespace superdraft
