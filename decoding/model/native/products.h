// Matrix products of 8-bit activations with weights of 2 to 8 bits.
//
// Activations are rounded in groups of 32 numbers, each with a scale of its own: x = scale * level, level = -127..127.
// Weights come in panels of 16 outputs, inputs in groups of 32, so that one instruction multiplies four inputs of all
// 16 outputs. The levels of a panel and a group:
//
//     below 8 bits   256 bytes: byte 64 j + 4 n + i has the low four bits of input 4 j + i of output n in its low half,
//                    and those of input 16 + 4 j + i in its high half. Then 64 bytes for each further bit: of B further
//                    bits, those of input 4 j + i are bits B j % 8 and up of byte 64 (B j / 8) + 4 n + i.
//     8 bits         512 bytes: byte 64 j + 4 n + i is input 4 j + i of output n.
//
// What follows turns levels into weights, see `Format`. These are the integers of a GGUF file's blocks, in another order:
// a weight is the file's to the last bit.
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
constexpr int kSuperblock = 8;   // groups
constexpr int kAhead = 3072;    // bytes before they are needed, weights are asked for; others of 768 to 6144 were no faster
constexpr int kRowsAtOnce = 8;  // each needs a register for its sums, the weights of a group eight; 16 were no faster

// A format of weights: w = scale * (level - offset), or scale * level + minimum, which has offset 0 here. Scales and
// minima are those of an output and of a group, or of each half of it: in float16, or, in a superblock of 8 groups, the
// product of a float16 and a signed byte; the minima of superblocks are subtracted. A panel has, per group, the levels,
// [halves, 16] scales, [halves, 16] minima; and, before the first group of a superblock, 16 scales and 16 minima.
struct Format {
    int bits, halves, offset;
    bool is_super;

    constexpr bool has_minima() const { return offset == 0; }
    constexpr int level_bytes() const { return kPanel * kGroup * bits / 8; }
    constexpr int scale_bytes() const { return kPanel * (is_super ? 1 : 2) * halves; }
    constexpr int block_bytes() const { return level_bytes() + scale_bytes() * (has_minima() ? 2 : 1); }
    constexpr int super_bytes() const { return is_super ? kPanel * 2 * (has_minima() ? 2 : 1) : 0; }

    // Bytes of a panel's first groups.
    constexpr ptrdiff_t panel_bytes(int num_groups) const {
        return (ptrdiff_t)num_groups * block_bytes() + (num_groups + kSuperblock - 1) / kSuperblock * super_bytes();
    }
};

// The order is that of `Format` in `structs.py`.
constexpr Format kFormats[] = {
    {4, 1, 0, false},    // INT4: Q4_0, Q4_1, and what we round ourselves
    {5, 1, 16, false},   // Q5_0
    {5, 1, 0, false},    // Q5_1
    {8, 1, 128, false},  // INT8: Q8_0, IQ4_NL, and what we round ourselves
    {4, 1, 0, true},     // Q4_K
    {5, 1, 0, true},     // Q5_K
    {6, 2, 32, true},    // Q6_K
    {4, 2, 4, true},     // Q3_K
    {4, 2, 0, true},     // Q2_K
};
constexpr int kNumFormats = sizeof kFormats / sizeof kFormats[0];

// A group of 32 activations of kRowsAtOnce rows: what the products read next lies next in memory.
struct ActivationGroup {
    int8_t levels[kRowsAtOnce][kGroup];
    float scales[kRowsAtOnce];
    float sums[kRowsAtOnce];         // scale * sum of the levels
    int32_t counts[2][kRowsAtOnce];  // sum of the levels in each half
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
        const Floats first = rounded(low * inverse), second = rounded(high * inverse);
        store(group.levels[place], __builtin_convertvector(__builtin_convertvector(first, Ints), Bytes));
        store(group.levels[place] + kLanes, __builtin_convertvector(__builtin_convertvector(second, Ints), Bytes));
        const float counts[2] = {sum(first), sum(second)};  // exact, below 2^24
        group.scales[place] = largest / 127.0f;
        group.counts[0][place] = (int32_t)counts[0];
        group.counts[1][place] = (int32_t)counts[1];
        group.sums[place] = largest / 127.0f * (counts[0] + counts[1]);
    }

    void write_row(ptrdiff_t row, const float* values) const {
        for (int group = 0; group < num_groups; ++group)
            write(row, group, load<Floats>(values + group * kGroup), load<Floats>(values + group * kGroup + kLanes));
    }
};

// Outputs of one format that lie below one another.
struct Weights {
    const uint8_t* panels;
    int32_t format;
    int32_t num_panels;
};

constexpr int kMaxParts = 3;

// Every part but the last has whole panels.
struct Linear {
    Weights parts[kMaxParts];
    const float* bias;  // [outputs, padded to whole panels], or null
    int32_t num_outputs;
    int32_t num_inputs;

    int num_panels() const { return (num_outputs + kPanel - 1) / kPanel; }
};

#ifdef __AVX512VNNI__

// The levels of a panel and a group in registers: those of four inputs of all 16 outputs in each.
template <int kBits>
struct Levels {
    __m512i vectors[8];

    explicit Levels(const uint8_t* block) {
        if constexpr (kBits == 8) {
            for (int j = 0; j < 8; ++j) vectors[j] = _mm512_loadu_si512(block + 64 * j);
            return;
        }
        const __m512i half = _mm512_set1_epi8(15);
        for (int j = 0; j < 4; ++j) {
            const __m512i both = _mm512_loadu_si512(block + 64 * j);
            vectors[j] = _mm512_and_si512(both, half);
            vectors[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
        }
        if constexpr (kBits > 4) {
            const __m512i wanted = _mm512_set1_epi8((char)((1 << kBits) - 16));
            for (int j = 0; j < 8; ++j) {
                const int place = (kBits - 4) * j;
                const __m512i further = _mm512_loadu_si512(block + 256 + 64 * (place / 8));
                const __m512i moved = place % 8 < 4 ? _mm512_slli_epi16(further, 4 - place % 8)
                                                    : _mm512_srli_epi16(further, place % 8 - 4);
                vectors[j] = _mm512_ternarylogic_epi64(vectors[j], moved, wanted, 0xf8);  // the first | second & third
            }
        }
    }

    // first + the sum of levels times activations over the vectors [begin, begin + kCount), for 16 outputs.
    template <int kCount>
    Floats dot(int begin, const int8_t* activations, int32_t first) const {
        __m512i sums = _mm512_set1_epi32(first);
        for (int j = begin; j < begin + kCount; ++j) {
            int32_t four;
            std::memcpy(&four, activations + 4 * j, sizeof four);
            sums = _mm512_dpbusd_epi32(sums, vectors[j], _mm512_set1_epi32(four));
        }
        return (Floats)_mm512_cvtepi32_ps(sums);
    }
};

#elif defined(__aarch64__)  // NEON's dot products of signed bytes, 16 outputs in four registers

template <int kBits>
struct Levels {
    int8x16_t vectors[8][4];

    explicit Levels(const uint8_t* block) {
        for (int j = 0; j < 8; ++j)
            for (int quarter = 0; quarter < 4; ++quarter) {
                const int at = 64 * (kBits == 8 ? j : j % 4) + 16 * quarter;
                uint8x16_t levels = vld1q_u8(block + at);
                if constexpr (kBits == 8)
                    levels = veorq_u8(levels, vdupq_n_u8(128));  // signed, so less the offset
                else
                    levels = j < 4 ? vandq_u8(levels, vdupq_n_u8(15)) : vshrq_n_u8(levels, 4);
                if constexpr (kBits > 4 && kBits < 8) {
                    const int place = (kBits - 4) * j;
                    const uint8x16_t further = vld1q_u8(block + 256 + 64 * (place / 8) + 16 * quarter);
                    const uint8x16_t moved = vshlq_u8(further, vdupq_n_s8((int8_t)(4 - place % 8)));
                    levels = vorrq_u8(levels, vandq_u8(moved, vdupq_n_u8((1 << kBits) - 16)));
                }
                vectors[j][quarter] = vreinterpretq_s8_u8(levels);
            }
    }

    template <int kCount>
    Floats dot(int begin, const int8_t* activations, int32_t first) const {
        int32x4_t sums[4];
        for (int quarter = 0; quarter < 4; ++quarter) sums[quarter] = vdupq_n_s32(kBits == 8 ? 0 : first);
        for (int j = begin; j < begin + kCount; ++j) {
            int32_t four;
            std::memcpy(&four, activations + 4 * j, sizeof four);
            const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int quarter = 0; quarter < 4; ++quarter)
                sums[quarter] = vdotq_s32(sums[quarter], vectors[j][quarter], inputs);
        }
        Quads values;
        for (int quarter = 0; quarter < 4; ++quarter) values.parts[quarter] = vcvtq_f32_s32(sums[quarter]);
        return load<Floats>((const float*)&values);
    }
};

#else  // AVX2: products of bytes in 16 bits, 16 outputs in two registers

template <int kBits>
struct Levels {
    __m256i vectors[8][2];

    explicit Levels(const uint8_t* block) {
        for (int j = 0; j < (kBits == 8 ? 8 : 4); ++j)
            for (int side = 0; side < 2; ++side) {
                const __m256i bytes = _mm256_loadu_si256((const __m256i*)(block + 64 * j + 32 * side));
                if constexpr (kBits == 8) {
                    vectors[j][side] = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));  // signed, so less the offset
                    continue;
                }
                const __m256i half = _mm256_set1_epi8(15);
                vectors[j][side] = _mm256_and_si256(bytes, half);
                vectors[(j + 4) % 8][side] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), half);
            }
        if constexpr (kBits > 4 && kBits < 8) {
            const __m256i wanted = _mm256_set1_epi8((char)((1 << kBits) - 16));
            for (int j = 0; j < 8; ++j)
                for (int side = 0; side < 2; ++side) {
                    const int place = (kBits - 4) * j;
                    const __m256i further =
                        _mm256_loadu_si256((const __m256i*)(block + 256 + 64 * (place / 8) + 32 * side));
                    const __m256i moved = place % 8 < 4 ? _mm256_slli_epi16(further, 4 - place % 8)
                                                        : _mm256_srli_epi16(further, place % 8 - 4);
                    vectors[j][side] = _mm256_or_si256(vectors[j][side], _mm256_and_si256(moved, wanted));
                }
        }
    }

    template <int kCount>
    Floats dot(int begin, const int8_t* activations, int32_t first) const {
        // So many products of two bytes fit in 16 bits: 2 * 15 * 127 * 8 < 2^15, 2 * 31 * 127 * 4, 2 * 63 * 127 * 2.
        constexpr int kRun = std::min(kCount, kBits == 8 ? 1 : 8 >> (kBits - 4));
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i sums[2] = {_mm256_set1_epi32(kBits == 8 ? 0 : first), _mm256_set1_epi32(kBits == 8 ? 0 : first)};
        for (int run = begin; run < begin + kCount; run += kRun)
            for (int side = 0; side < 2; ++side) {
                __m256i products = _mm256_setzero_si256();
                for (int j = run; j < run + kRun; ++j) {
                    int32_t four;
                    std::memcpy(&four, activations + 4 * j, sizeof four);
                    const __m256i inputs = _mm256_set1_epi32(four), levels = vectors[j][side];
                    // The instruction multiplies unsigned by signed bytes: a level's sign moves to the activation.
                    products = kBits == 8
                                   ? _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(inputs, levels))
                                   : _mm256_add_epi16(products, _mm256_maddubs_epi16(levels, inputs));
                }
                sums[side] = _mm256_add_epi32(sums[side], _mm256_madd_epi16(products, ones));
            }
        Floats values;
        store((float*)&values, _mm256_cvtepi32_ps(sums[0]));
        store((float*)&values + 8, _mm256_cvtepi32_ps(sums[1]));
        return values;
    }
};

#endif

template <int kFormat, int kRows>
inline void panel_sums(const uint8_t* at, const ActivationGroup* groups, int num_groups, Floats* totals) {
    constexpr Format format = kFormats[kFormat];
    Floats scale{}, minimum{};  // of the superblock
    for (int index = 0; index < num_groups; ++index, at += format.block_bytes()) {
        if constexpr (format.is_super)
            if (index % kSuperblock == 0) {
                scale = from_float16((const uint16_t*)at);
                if constexpr (format.has_minima()) minimum = -from_float16((const uint16_t*)at + kPanel);
                at += format.super_bytes();
            }
        if constexpr (kRows > 1)  // a single row waits for memory in any case
            for (int line = 0; line < format.block_bytes(); line += 64) __builtin_prefetch(at + kAhead + line);
        const ActivationGroup& group = groups[index];
        const Levels<format.bits> levels(at);
        const uint8_t* sides = at + format.level_bytes();
        Floats scales[format.halves], minima[format.halves];
        for (int half = 0; half < format.halves; ++half) {
            const uint8_t *own = sides + half * format.scale_bytes() / format.halves, *below = own + format.scale_bytes();
            scales[half] = format.is_super ? scale * from_bytes((const int8_t*)own) : from_float16((const uint16_t*)own);
            if constexpr (format.has_minima())
                minima[half] =
                    format.is_super ? minimum * from_bytes((const int8_t*)below) : from_float16((const uint16_t*)below);
        }
        for (int row = 0; row < kRows; ++row)
            for (int half = 0; half < format.halves; ++half) {
                constexpr int kCount = 8 / format.halves;
                const int32_t count =
                    format.halves == 1 ? group.counts[0][row] + group.counts[1][row] : group.counts[half][row];
                if constexpr (format.has_minima())
                    totals[row] += minima[half] * (format.halves == 1 ? group.sums[row] : group.scales[row] * count);
                totals[row] += (scales[half] * group.scales[row]) *
                               levels.template dot<kCount>(half * kCount, group.levels[row], -format.offset * count);
            }
    }
}

template <int kFormat, int kRows>
inline void panel_rows(const uint8_t* panel, Floats bias, const Activations& activations, ptrdiff_t first, Floats* totals) {
    Floats sums[kRows];
    for (int row = 0; row < kRows; ++row) sums[row] = Floats{};
    panel_sums<kFormat, kRows>(panel, activations.rows(first), activations.num_groups, sums);
    for (int row = 0; row < kRows; ++row) totals[row] = sums[row] + bias;
}

template <int kFormat>
inline void panel_of_format(
    const uint8_t* panel, Floats bias, const Activations& activations, ptrdiff_t first, int num_rows, Floats* totals) {
    switch (num_rows) {
        case 1: return panel_rows<kFormat, 1>(panel, bias, activations, first, totals);
        case 2: return panel_rows<kFormat, 2>(panel, bias, activations, first, totals);
        case 3: return panel_rows<kFormat, 3>(panel, bias, activations, first, totals);
        case 4: return panel_rows<kFormat, 4>(panel, bias, activations, first, totals);
        case 5: return panel_rows<kFormat, 5>(panel, bias, activations, first, totals);
        case 6: return panel_rows<kFormat, 6>(panel, bias, activations, first, totals);
        case 7: return panel_rows<kFormat, 7>(panel, bias, activations, first, totals);
        default: return panel_rows<kFormat, 8>(panel, bias, activations, first, totals);
    }
}

// The 16 outputs of one panel for up to kRowsAtOnce rows from `first`, a multiple of it; one vector per row.
inline void panel_product(
    const Linear& linear, int panel, const Activations& activations, ptrdiff_t first, int num_rows, Floats* totals) {
    const Floats bias = linear.bias == nullptr ? Floats{} : load<Floats>(linear.bias + panel * kPanel);
    const Weights* part = linear.parts;
    for (; panel >= part->num_panels; ++part) panel -= part->num_panels;
    const uint8_t* at = part->panels + panel * kFormats[part->format].panel_bytes(activations.num_groups);
    switch (part->format) {
        case 0: return panel_of_format<0>(at, bias, activations, first, num_rows, totals);
        case 1: return panel_of_format<1>(at, bias, activations, first, num_rows, totals);
        case 2: return panel_of_format<2>(at, bias, activations, first, num_rows, totals);
        case 3: return panel_of_format<3>(at, bias, activations, first, num_rows, totals);
        case 4: return panel_of_format<4>(at, bias, activations, first, num_rows, totals);
        case 5: return panel_of_format<5>(at, bias, activations, first, num_rows, totals);
        case 6: return panel_of_format<6>(at, bias, activations, first, num_rows, totals);
        case 7: return panel_of_format<7>(at, bias, activations, first, num_rows, totals);
        default: return panel_of_format<8>(at, bias, activations, first, num_rows, totals);
    }
}

// Outputs of panels [begin, end) for all rows: to[row * stride + output], or `factor` times it added to what is there.
inline void product(
    const Linear& linear, int begin, int end, const Activations& activations, ptrdiff_t num_rows, float* to,
    ptrdiff_t stride, bool adds, float factor = 1.0f) {
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
                const Floats after = before + totals[row] * factor;
                std::memcpy(place, &after, width * sizeof(float));
            }
        }
    }
}

}  // namespace superdraft
