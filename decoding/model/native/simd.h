// Vectors of 16 floats, written with the compiler's vector extensions: one AVX-512 register, two of AVX2, four of NEON.
// Sums are taken in the same order by all of them.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __aarch64__
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

namespace superdraft {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t HalfWords __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

template <typename Vector, typename Item>
inline Vector load(const Item* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename Vector, typename Item>
inline void store(Item* to, Vector vector) {
    std::memcpy(to, &vector, sizeof vector);
}

inline Floats splat(float value) { return Floats{} + value; }

inline Floats select(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline Floats from_bfloat16(const uint16_t* from) {
    return (Floats)(__builtin_convertvector(load<HalfWords>(from), Words) << 16);
}

inline void to_bfloat16(uint16_t* to, Floats values) {
    Words bits = (Words)values;
    bits += 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    store(to, __builtin_convertvector(bits >> 16, HalfWords));
}

#ifdef __aarch64__

struct Quads {
    float32x4_t parts[4];
};

inline Quads quads(Floats values) { return load<Quads>((const float*)&values); }

inline Floats from_float16(const uint16_t* from) {
    Quads values;
    for (int i = 0; i < 4; ++i) values.parts[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
    return load<Floats>((const float*)&values);
}

inline uint16_t to_float16(float value) {
    const __fp16 half = (__fp16)value;
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

inline float from_float16(uint16_t value) {
    __fp16 half;
    std::memcpy(&half, &value, sizeof half);
    return (float)half;
}

inline Floats from_bytes(const int8_t* from) {
    Quads values;
    for (int half = 0; half < 2; ++half) {
        const int16x8_t words = vmovl_s8(vld1_s8(from + 8 * half));
        values.parts[2 * half] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
        values.parts[2 * half + 1] = vcvtq_f32_s32(vmovl_high_s16(words));
    }
    return load<Floats>((const float*)&values);
}

inline float maximum(Floats values) {
    const Quads all = quads(values);
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(all.parts[0], all.parts[1]), vmaxq_f32(all.parts[2], all.parts[3])));
}

inline float sum(Floats values) {
    const Quads all = quads(values);
    const float32x4_t four = vaddq_f32(vaddq_f32(all.parts[0], all.parts[2]), vaddq_f32(all.parts[1], all.parts[3]));
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// The sum of each of 16 vectors.
inline Floats sums(const Floats* vectors) {
    Quads results;
    for (int quarter = 0; quarter < 4; ++quarter) {
        float32x4_t low[4], high[4];
        for (int i = 0; i < 4; ++i) {
            const Quads all = quads(vectors[4 * quarter + i]);
            low[i] = vaddq_f32(all.parts[0], all.parts[2]), high[i] = vaddq_f32(all.parts[1], all.parts[3]);
        }
        results.parts[quarter] = vaddq_f32(vpaddq_f32(vpaddq_f32(low[0], low[1]), vpaddq_f32(low[2], low[3])),
                                           vpaddq_f32(vpaddq_f32(high[0], high[1]), vpaddq_f32(high[2], high[3])));
    }
    return load<Floats>((const float*)&results);
}

inline void relax() { asm volatile("yield"); }

#else

inline Floats from_float16(const uint16_t* from) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    Floats values;
    store((float*)&values, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
    store((float*)&values + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8))));
    return values;
#endif
}

inline uint16_t to_float16(float value) { return (uint16_t)_cvtss_sh(value, 0); }

inline float from_float16(uint16_t value) { return _cvtsh_ss(value); }

// Not by __builtin_convertvector, for which GCC 12 takes bytes one by one.
inline Floats from_bytes(const int8_t* from) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
    Floats values;
    for (int half = 0; half < 2; ++half)
        store((float*)&values + 8 * half,
              _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(from + 8 * half)))));
    return values;
#endif
}

inline __m256 low_half(Floats values) { return _mm256_loadu_ps((const float*)&values); }

inline __m256 high_half(Floats values) { return _mm256_loadu_ps((const float*)&values + 8); }

inline float maximum(Floats values) {
    const __m256 eight = _mm256_max_ps(low_half(values), high_half(values));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline float sum(Floats values) {
    const __m256 eight = _mm256_add_ps(low_half(values), high_half(values));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// The sum of each of 16 vectors.
inline Floats sums(const Floats* vectors) {
    __m256 results[2];
    for (int half = 0; half < 2; ++half) {
        __m256 eights[8];
        for (int i = 0; i < 8; ++i)
            eights[i] = _mm256_add_ps(low_half(vectors[8 * half + i]), high_half(vectors[8 * half + i]));
        const __m256 first = _mm256_hadd_ps(_mm256_hadd_ps(eights[0], eights[1]), _mm256_hadd_ps(eights[2], eights[3]));
        const __m256 second = _mm256_hadd_ps(_mm256_hadd_ps(eights[4], eights[5]), _mm256_hadd_ps(eights[6], eights[7]));
        results[half] = _mm256_add_ps(
            _mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31));
    }
    return load<Floats>((const float*)results);
}

inline void relax() { _mm_pause(); }

#endif

// To the nearest whole number, for |value| < 2^22.
inline Floats rounded(Floats values) {
    const Floats shift = splat(12582912.0f);
    return (values + shift) - shift;
}

// e^x, within 2 units in the last place.
inline Floats exponential(Floats values) {
    values = larger(values, splat(-87.0f));
    values = values > 88.0f ? splat(88.0f) : values;
    const Floats power = rounded(values * 1.44269504f);
    Floats rest = values - power * 0.693359375f;
    rest = rest + power * 2.12194440e-4f;
    Floats result = splat(1.9875691500e-4f);
    result = result * rest + 1.3981999507e-3f;
    result = result * rest + 8.3334519073e-3f;
    result = result * rest + 4.1665795894e-2f;
    result = result * rest + 1.6666665459e-1f;
    result = result * rest + 5.0000001201e-1f;
    result = result * rest * rest + rest + 1.0f;
    const Ints exponent = (__builtin_convertvector(power, Ints) + 127) << 23;
    return result * (Floats)exponent;
}

}  // namespace superdraft
