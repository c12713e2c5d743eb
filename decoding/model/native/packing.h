// Rows of GGUF tensors, and of tensors in floating point: to numbers, and to panels of weights.
//
// The blocks are those of GGML (ggml-common.h in llama.cpp); a type's number is that in the file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "products.h"

namespace superdraft {

enum class Type : int32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    BF16 = 30,
};

// A matrix as it lies in memory.
struct Matrix {
    const uint8_t* rows;
    int64_t row_bytes;
    Type type;
    int32_t num_inputs;
};

// 32 weights of one output. Scales and minima as in `Format`.
struct Group {
    uint8_t levels[kGroup];
    uint16_t scale, minimum;         // float16
    int8_t scales[2], minima[2];  // of superblocks
};

constexpr int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};  // IQ4_NL

inline uint16_t half_at(const uint8_t* at) {
    uint16_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline void read_nibbles(const uint8_t* from, Group& to) {
    for (int i = 0; i < 16; ++i) to.levels[i] = from[i] & 15, to.levels[16 + i] = from[i] >> 4;
}

inline void add_fifth_bits(const uint8_t* from, Group& to) {
    for (int i = 0; i < kGroup; ++i) to.levels[i] |= (from[i / 8] >> (i % 8) & 1) << 4;
}

// The 6-bit scale and minimum of a group of Q4_K and Q5_K.
inline void read_k_scales(const uint8_t* from, int group, Group& to) {
    if (group < 4) {
        to.scales[0] = from[group] & 63, to.minima[0] = from[group + 4] & 63;
    } else {
        to.scales[0] = (from[group + 4] & 15) | from[group - 4] >> 6 << 4;
        to.minima[0] = from[group + 4] >> 4 | from[group] >> 6 << 4;
    }
}

inline Group read_group(const Matrix& matrix, const uint8_t* row, int index) {
    Group to{};
    const int group = index % kSuperblock, superblock = index / kSuperblock;
    switch (matrix.type) {
        case Type::Q4_0:
        case Type::IQ4_NL: {
            const uint8_t* block = row + index * 18;
            to.scale = half_at(block);
            read_nibbles(block + 2, to);
            if (matrix.type == Type::Q4_0)
                to.minimum = to_float16(-8.0f * from_float16(to.scale));  // exact
            else
                for (uint8_t& level : to.levels) level = (uint8_t)(kNonlinear[level] + 128);
            break;
        }
        case Type::Q4_1: {
            const uint8_t* block = row + index * 20;
            to.scale = half_at(block), to.minimum = half_at(block + 2);
            read_nibbles(block + 4, to);
            break;
        }
        case Type::Q5_0: {
            const uint8_t* block = row + index * 22;
            to.scale = half_at(block);
            read_nibbles(block + 6, to);
            add_fifth_bits(block + 2, to);
            break;
        }
        case Type::Q5_1: {
            const uint8_t* block = row + index * 24;
            to.scale = half_at(block), to.minimum = half_at(block + 2);
            read_nibbles(block + 8, to);
            add_fifth_bits(block + 4, to);
            break;
        }
        case Type::Q8_0: {
            const uint8_t* block = row + index * 34;
            to.scale = half_at(block);
            for (int i = 0; i < kGroup; ++i) to.levels[i] = block[2 + i] ^ 128;
            break;
        }
        case Type::Q2_K: {
            const uint8_t *block = row + superblock * 84, *levels = block + 16 + group / 4 * 32;
            to.scale = half_at(block + 80), to.minimum = half_at(block + 82);
            for (int half = 0; half < 2; ++half)
                to.scales[half] = block[2 * group + half] & 15, to.minima[half] = block[2 * group + half] >> 4;
            for (int i = 0; i < kGroup; ++i) to.levels[i] = levels[i] >> (2 * (group % 4)) & 3;
            break;
        }
        case Type::Q3_K: {
            const uint8_t *block = row + superblock * 110, *levels = block + 32 + group / 4 * 32, *scales = block + 96;
            to.scale = half_at(block + 108);
            for (int half = 0; half < 2; ++half) {
                const int i = 2 * group + half;
                const int low = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4;
                to.scales[half] = (int8_t)((low | (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32);
            }
            for (int i = 0; i < kGroup; ++i)
                to.levels[i] = (levels[i] >> (2 * (group % 4)) & 3) | (block[i] >> group & 1) << 2;
            break;
        }
        case Type::Q4_K:
        case Type::Q5_K: {
            const bool has_fifth = matrix.type == Type::Q5_K;
            const uint8_t* block = row + superblock * (has_fifth ? 176 : 144);
            const uint8_t* levels = block + (has_fifth ? 48 : 16) + group / 2 * 32;
            to.scale = half_at(block), to.minimum = half_at(block + 2);
            read_k_scales(block + 4, group, to);
            for (int i = 0; i < kGroup; ++i) {
                to.levels[i] = group % 2 ? levels[i] >> 4 : levels[i] & 15;
                if (has_fifth) to.levels[i] |= (block[16 + i] >> group & 1) << 4;
            }
            break;
        }
        case Type::Q6_K: {
            const uint8_t* block = row + superblock * 210;
            const uint8_t *low = block + group / 4 * 64 + group % 2 * 32, *high = block + 128 + group / 4 * 32;
            to.scale = half_at(block + 208);
            for (int half = 0; half < 2; ++half) to.scales[half] = (int8_t)block[192 + 2 * group + half];
            for (int i = 0; i < kGroup; ++i)
                to.levels[i] = (group % 4 < 2 ? low[i] & 15 : low[i] >> 4) | (high[i] >> (2 * (group % 4)) & 3) << 4;
            break;
        }
        default: break;  // floating point, which `read_floats` reads
    }
    return to;
}

// The format that holds a type's levels; -1: it is a type of floating point.
inline int format_of(Type type) {
    switch (type) {
        case Type::Q4_0:
        case Type::Q4_1: return 0;
        case Type::Q5_0: return 1;
        case Type::Q5_1: return 2;
        case Type::Q8_0:
        case Type::IQ4_NL: return 3;
        case Type::Q4_K: return 4;
        case Type::Q5_K: return 5;
        case Type::Q6_K: return 6;
        case Type::Q3_K: return 7;
        case Type::Q2_K: return 8;
        default: return -1;
    }
}

// The 32 numbers of a group, in the same operations as gguf-py's.
inline void to_floats(const Group& group, const Format& format, float* to) {
    for (int i = 0; i < kGroup; ++i) {
        const int half = format.halves == 2 ? i / 16 : 0;
        float scale = from_float16(group.scale), minimum = from_float16(group.minimum);
        if (format.is_super) scale *= group.scales[half], minimum *= -(float)group.minima[half];
        const float product = scale * (float)(group.levels[i] - format.offset);
        to[i] = format.has_minima() ? product + minimum : product;
    }
}

inline void read_floats(const Matrix& matrix, const uint8_t* row, int index, float* to) {
    const int format = format_of(matrix.type);
    if (format >= 0) return to_floats(read_group(matrix, row, index), kFormats[format], to);
    if (matrix.type == Type::F32) {
        std::memcpy(to, row + index * kGroup * 4, kGroup * 4);
        return;
    }
    for (int i = 0; i < kGroup; ++i) {
        const uint16_t value = half_at(row + (index * kGroup + i) * 2);
        const uint32_t bits = (uint32_t)value << 16;
        if (matrix.type == Type::F16)
            to[i] = from_float16(value);
        else
            std::memcpy(to + i, &bits, sizeof bits);
    }
}

// Round 32 numbers to 16 levels between the smallest and the largest, or to 255 around zero.
inline Group rounded_group(const float* from, bool is_int8) {
    Group to{};
    float low = from[0], high = from[0];
    for (int i = 1; i < kGroup; ++i) low = std::min(low, from[i]), high = std::max(high, from[i]);
    to.scale = to_float16(is_int8 ? std::max(-low, high) / 127.0f : (high - low) / 15.0f);
    to.minimum = is_int8 ? 0 : to_float16(low);
    const float scale = from_float16(to.scale), minimum = from_float16(to.minimum);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f, limit = is_int8 ? 127.0f : 15.0f;
    for (int i = 0; i < kGroup; ++i) {
        const float level = std::nearbyint((from[i] - minimum) * inverse);
        to.levels[i] = (uint8_t)(std::min(limit, std::max(is_int8 ? -limit : 0.0f, level)) + (is_int8 ? 128.0f : 0.0f));
    }
    return to;
}

inline void write_group(const Group& group, const Format& format, uint8_t* panel, int index, int output) {
    const ptrdiff_t blocks = (ptrdiff_t)index * format.block_bytes();
    if (format.is_super) {
        uint8_t* super = panel + blocks + index / kSuperblock * format.super_bytes();
        if (index % kSuperblock == 0) {
            std::memcpy(super + 2 * output, &group.scale, 2);
            if (format.has_minima()) std::memcpy(super + 2 * (kPanel + output), &group.minimum, 2);
        }
    }
    uint8_t* block = panel + blocks + (format.is_super ? index / kSuperblock + 1 : 0) * format.super_bytes();
    for (int i = 0; i < kGroup; ++i) {
        const uint8_t level = group.levels[i];
        if (format.bits == 8) {
            block[i / 4 * 64 + 4 * output + i % 4] = level;
            continue;
        }
        block[i % 16 / 4 * 64 + 4 * output + i % 4] |= (level & 15) << (i < 16 ? 0 : 4);
        if (format.bits > 4) {
            const int place = (format.bits - 4) * (i / 4);
            block[256 + place / 8 * 64 + 4 * output + i % 4] |= (level >> 4) << place % 8;
        }
    }
    uint8_t *scales = block + format.level_bytes(), *minima = scales + format.scale_bytes();
    for (int half = 0; half < format.halves; ++half) {
        const int place = half * kPanel + output;
        if (format.is_super) {
            scales[place] = (uint8_t)group.scales[half];
            if (format.has_minima()) minima[place] = (uint8_t)group.minima[half];
        } else {
            std::memcpy(scales + 2 * place, &group.scale, 2);
            if (format.has_minima()) std::memcpy(minima + 2 * place, &group.minimum, 2);
        }
    }
}

}  // namespace superdraft
