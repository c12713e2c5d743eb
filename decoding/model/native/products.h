// Matrix products of 8-bit activations with 4-bit and 8-bit weights.
//
// Activations are rounded in groups of 32 numbers, each with a scale of its own: x = scale * level, level = -127..127.
// Weights come in panels of 16 outputs, inputs in groups of 32, so that one instruction multiplies four inputs of all
// 16 outputs:
//
//     4 bits   per panel and group: 256 bytes of levels 0..15, 16 scales, 16 minima (float16); w = scale * level + minimum.
//              Byte 64 j + 4 n + i holds input 4 j + i of output n in its low half, and input 16 + 4 j + i in its high half.
//     8 bits   per panel and group: 512 bytes of levels + 128; byte 64 j + 4 n + i is input 4 j + i of output n;
//              w = scale of the output * level.
//
// All sums of one row are taken in the same order however many rows there are, so a row's result does not depend on the
// others.
#pragma once

#include <algorithm>
#include <cstddef>

#include "simd.h"

namespace superdraft {

constexpr int kGroup = 32;
constexpr int kPanel = 16;
constexpr int kInt4Block = kPanel * kGroup / 2 + 2 * kPanel * 2;
constexpr int kInt8Block = kPanel * kGroup;
constexpr int kRowsAtOnce = 8;  // each needs a register for its sums, the weights of a group eight; 16 were no faster

// A group of 32 activations of kRowsAtOnce rows: what the products read next lies next in memory.
struct ActivationGroup {
    int8_t levels[kRowsAtOnce][kGroup];
    float scales[kRowsAtOnce];
    float sums[kRowsAtOnce];      // scale * sum of the levels
    int32_t counts[kRowsAtOnce];  // sum of the levels
};

// Rounded activations of some rows.
struct Activations {
    ActivationGroup* groups;  // [rows / kRowsAtOnce, inputs / kGroup]
    int num_groups;

    // The groups of kRowsAtOnce rows from `first`, a multiple of it.
    ActivationGroup* rows(ptrdiff_t first) const { return groups + first / kRowsAtOnce * num_groups; }

    // Round the 32 numbers of one group of a row.
    void write(ptrdiff_t row, int index, Floats low, Floats high) const {
        ActivationGroup& group = rows(row)[index];
        const int place = row % kRowsAtOnce;
        const float largest = maximum(larger(larger(low, -low), larger(high, -high)));
        const Floats inverse = splat(largest > 0 ? 127.0f / largest : 0.0f);
        const Ints first = __builtin_convertvector(rounded(low * inverse), Ints);
        const Ints second = __builtin_convertvector(rounded(high * inverse), Ints);
        store(group.levels[place], __builtin_convertvector(first, Bytes));
        store(group.levels[place] + kLanes, __builtin_convertvector(second, Bytes));
        const float count = sum(__builtin_convertvector(first + second, Floats));  // exact, below 2^24
        group.scales[place] = largest / 127.0f;
        group.counts[place] = (int32_t)count;
        group.sums[place] = largest / 127.0f * count;
    }

    void write_row(ptrdiff_t row, const float* values) const {
        for (int group = 0; group < num_groups; ++group)
            write(row, group, load<Floats>(values + group * kGroup), load<Floats>(values + group * kGroup + kLanes));
    }
};

struct Linear {
    const uint8_t* panels;
    const float* scales;  // [outputs, padded to whole panels], 8 bits only
    const float* bias;    // [outputs, padded to whole panels], or null
    int32_t num_outputs;
    int32_t num_inputs;
    int32_t bits;

    int num_panels() const { return (num_outputs + kPanel - 1) / kPanel; }
    ptrdiff_t panel_bytes() const {
        return (ptrdiff_t)(num_inputs / kGroup) * (bits == 4 ? kInt4Block : kInt8Block);
    }
};

#ifdef __AVX512VNNI__

// Sum over four inputs of weights 0..255 times activations, for 16 outputs.
inline __m512i dot(__m512i sums, __m512i weights, const int8_t* activations) {
    int32_t four;
    std::memcpy(&four, activations, sizeof four);
    return _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(four));
}

template <int kRows>
inline void int4_panel(const uint8_t* block, const ActivationGroup* groups, int num_groups, Floats* totals) {
    const __m512i half = _mm512_set1_epi8(15);
    for (int group = 0; group < num_groups; ++group, block += kInt4Block) {
        __m512i weights[8];
        for (int j = 0; j < 4; ++j) {
            const __m512i both = _mm512_loadu_si512(block + 64 * j);
            weights[j] = _mm512_and_si512(both, half);
            weights[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
        }
        const Floats scales = from_float16((const uint16_t*)(block + 256));
        const Floats minima = from_float16((const uint16_t*)(block + 288));
        for (int row = 0; row < kRows; ++row) {
            const int8_t* levels = groups[group].levels[row];
            __m512i sums = _mm512_setzero_si512();
            for (int j = 0; j < 8; ++j) sums = dot(sums, weights[j], levels + 4 * j);
            totals[row] += minima * groups[group].sums[row];
            totals[row] += (scales * groups[group].scales[row]) * (Floats)_mm512_cvtepi32_ps(sums);
        }
    }
}

template <int kRows>
inline void int8_panel(const uint8_t* block, const ActivationGroup* groups, int num_groups, Floats* totals) {
    for (int group = 0; group < num_groups; ++group, block += kInt8Block) {
        __m512i weights[8];
        for (int j = 0; j < 8; ++j) weights[j] = _mm512_loadu_si512(block + 64 * j);
        for (int row = 0; row < kRows; ++row) {
            const int8_t* levels = groups[group].levels[row];
            __m512i sums = _mm512_set1_epi32(-128 * groups[group].counts[row]);
            for (int j = 0; j < 8; ++j) sums = dot(sums, weights[j], levels + 4 * j);
            totals[row] += groups[group].scales[row] * (Floats)_mm512_cvtepi32_ps(sums);
        }
    }
}

#else  // AVX2: products of bytes in 16 bits, sums of 16 outputs in two registers

inline __m256i four_inputs(const int8_t* activations) {
    int32_t four;
    std::memcpy(&four, activations, sizeof four);
    return _mm256_set1_epi32(four);
}

inline Floats joined(__m256i low, __m256i high) {
    Floats values;
    store((float*)&values, _mm256_cvtepi32_ps(low));
    store((float*)&values + 8, _mm256_cvtepi32_ps(high));
    return values;
}

template <int kRows>
inline void int4_panel(const uint8_t* block, const ActivationGroup* groups, int num_groups, Floats* totals) {
    const __m256i half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int group = 0; group < num_groups; ++group, block += kInt4Block) {
        __m256i weights[8][2];
        for (int j = 0; j < 4; ++j)
            for (int side = 0; side < 2; ++side) {
                const __m256i both = _mm256_loadu_si256((const __m256i*)(block + 64 * j + 32 * side));
                weights[j][side] = _mm256_and_si256(both, half);
                weights[j + 4][side] = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
            }
        const Floats scales = from_float16((const uint16_t*)(block + 256));
        const Floats minima = from_float16((const uint16_t*)(block + 288));
        for (int row = 0; row < kRows; ++row) {
            const int8_t* levels = groups[group].levels[row];
            // 16 products of at most 15 * 127 fit in 16 bits.
            __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int j = 0; j < 8; ++j)
                for (int side = 0; side < 2; ++side)
                    sums[side] = _mm256_add_epi16(
                        sums[side], _mm256_maddubs_epi16(weights[j][side], four_inputs(levels + 4 * j)));
            totals[row] += minima * groups[group].sums[row];
            totals[row] += (scales * groups[group].scales[row]) *
                           joined(_mm256_madd_epi16(sums[0], ones), _mm256_madd_epi16(sums[1], ones));
        }
    }
}

template <int kRows>
inline void int8_panel(const uint8_t* block, const ActivationGroup* groups, int num_groups, Floats* totals) {
    const __m256i shift = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    for (int group = 0; group < num_groups; ++group, block += kInt8Block) {
        for (int row = 0; row < kRows; ++row) {
            const int8_t* levels = groups[group].levels[row];
            __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int j = 0; j < 8; ++j)
                for (int side = 0; side < 2; ++side) {
                    const __m256i weights = _mm256_xor_si256(
                        _mm256_loadu_si256((const __m256i*)(block + 64 * j + 32 * side)), shift);
                    // The instruction multiplies unsigned by signed bytes: the weight's sign moves to the activation.
                    const __m256i products = _mm256_maddubs_epi16(
                        _mm256_abs_epi8(weights), _mm256_sign_epi8(four_inputs(levels + 4 * j), weights));
                    sums[side] = _mm256_add_epi32(sums[side], _mm256_madd_epi16(products, ones));
                }
            totals[row] += groups[group].scales[row] * joined(sums[0], sums[1]);
        }
    }
}

#endif

template <int kRows>
inline void panel_rows(const Linear& linear, int panel, const Activations& activations, ptrdiff_t first, Floats* totals) {
    const uint8_t* block = linear.panels + panel * linear.panel_bytes();
    const Floats bias = linear.bias == nullptr ? Floats{} : load<Floats>(linear.bias + panel * kPanel);
    Floats sums[kRows];
    for (int row = 0; row < kRows; ++row) sums[row] = Floats{};
    if (linear.bits == 4) {
        int4_panel<kRows>(block, activations.rows(first), activations.num_groups, sums);
        for (int row = 0; row < kRows; ++row) totals[row] = sums[row] + bias;
    } else {
        const Floats scales = load<Floats>(linear.scales + panel * kPanel);
        int8_panel<kRows>(block, activations.rows(first), activations.num_groups, sums);
        for (int row = 0; row < kRows; ++row) totals[row] = sums[row] * scales + bias;
    }
}

// The 16 outputs of one panel for up to kRowsAtOnce rows from `first`, a multiple of it; one vector per row.
inline void panel_product(
    const Linear& linear, int panel, const Activations& activations, ptrdiff_t first, int num_rows, Floats* totals) {
    switch (num_rows) {
        case 1: return panel_rows<1>(linear, panel, activations, first, totals);
        case 2: return panel_rows<2>(linear, panel, activations, first, totals);
        case 3: return panel_rows<3>(linear, panel, activations, first, totals);
        case 4: return panel_rows<4>(linear, panel, activations, first, totals);
        case 5: return panel_rows<5>(linear, panel, activations, first, totals);
        case 6: return panel_rows<6>(linear, panel, activations, first, totals);
        case 7: return panel_rows<7>(linear, panel, activations, first, totals);
        default: return panel_rows<8>(linear, panel, activations, first, totals);
    }
}

// Outputs of panels [begin, end) for all rows: to[row * stride + output], added to what is there if `adds`.
inline void product(
    const Linear& linear, int begin, int end, const Activations& activations, ptrdiff_t num_rows, float* to,
    ptrdiff_t stride, bool adds) {
    Floats totals[kRowsAtOnce];
    for (int panel = begin; panel < end; ++panel) {
        const int output = panel * kPanel, width = std::min(kPanel, linear.num_outputs - output);
        for (ptrdiff_t first = 0; first < num_rows; first += kRowsAtOnce) {
            const int count = (int)std::min<ptrdiff_t>(kRowsAtOnce, num_rows - first);
            panel_product(linear, panel, activations, first, count, totals);
            for (int row = 0; row < count; ++row) {
                float* place = to + (first + row) * stride + output;
                Floats before{};
                if (adds) std::memcpy(&before, place, width * sizeof(float));
                const Floats after = before + totals[row];
                std::memcpy(place, &after, width * sizeof(float));
            }
        }
    }
}

}  // namespace superdraft
