// Prints what the kernels compute from fixed numbers: compiled for two processors, it must print the same.

#include <cstdio>

#include "decoder.cpp"

namespace {

uint32_t state = 1;

uint32_t random_bits() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

float random_number(float size) { return size * ((float)(random_bits() % 4001) - 2000.0f) / 2000.0f; }

std::vector<float> random_numbers(size_t count, float size) {
    std::vector<float> found(count);
    for (float& number : found) number = random_number(size);
    return found;
}

void print(const char* what, const float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) std::printf("%s %.9g\n", what, (double)values[i]);
}

// A type's blocks: any bits, and float16 scales of up to .1 where the type has them.
struct Blocks {
    Type type;
    int block_size, block_bytes;
    int scales[2];
};

constexpr Blocks kTypes[] = {
    {Type::F32, 1, 4, {-1, -1}},       {Type::Q4_0, 32, 18, {0, -1}},    {Type::Q4_1, 32, 20, {0, 2}},
    {Type::Q5_0, 32, 22, {0, -1}},     {Type::Q5_1, 32, 24, {0, 2}},     {Type::Q8_0, 32, 34, {0, -1}},
    {Type::Q2_K, 256, 84, {80, 82}},   {Type::Q3_K, 256, 110, {108, -1}}, {Type::Q4_K, 256, 144, {0, 2}},
    {Type::Q5_K, 256, 176, {0, 2}},    {Type::Q6_K, 256, 210, {208, -1}}, {Type::IQ4_NL, 32, 18, {0, -1}},
};

struct Packed {
    std::vector<uint8_t> bytes, panels;
    Weights weights;

    Packed(const Blocks& about, int rows, int inputs, int bits) {
        const int64_t row_bytes = (int64_t)inputs / about.block_size * about.block_bytes;
        bytes.resize(rows * row_bytes);
        if (about.type == Type::F32) {
            const std::vector<float> numbers = random_numbers((size_t)rows * inputs, 0.2f);
            std::memcpy(bytes.data(), numbers.data(), bytes.size());
        } else {
            for (uint8_t& byte : bytes) byte = (uint8_t)random_bits();
            for (size_t at = 0; at < bytes.size(); at += about.block_bytes)
                for (int place : about.scales) {
                    const uint16_t scale = to_float16(random_number(0.01f));
                    if (place >= 0) std::memcpy(bytes.data() + at + place, &scale, sizeof scale);
                }
        }
        const Matrix matrix{bytes.data(), row_bytes, about.type, inputs};
        const int own = format_of(about.type), format = own >= 0 ? own : bits == 4 ? 0 : 3;
        std::vector<int32_t> order(rows);
        for (int row = 0; row < rows; ++row) order[row] = row;
        panels.resize((rows + kPanel - 1) / kPanel * superdraft_panel_bytes(format, inputs));
        superdraft_pack(&matrix, order.data(), rows, format, panels.data(), 1);
        weights = {panels.data(), format, (rows + kPanel - 1) / kPanel};
        std::vector<float> numbers(inputs);
        const int64_t last = rows - 1;
        superdraft_dequantise(&matrix, &last, 1, numbers.data(), 1);
        print("number", numbers.data(), 8);
    }

    Linear linear(int outputs, int inputs, const float* bias = nullptr) const {
        return Linear{{weights}, bias, outputs, inputs};
    }
};

}  // namespace

int main() {
    constexpr int kWidth = 256, kHeads = 4, kKvHeads = 2, kDim = 64, kInner = 512, kLayers = 2, kCells = 600;
    const std::vector<float> rows = random_numbers(11 * kWidth, 3.0f);
    for (const Blocks& about : kTypes)
        for (int bits : {4, 8}) {
            const Packed packed(about, 40, kWidth, bits);
            const std::vector<float> bias = random_numbers(48, 1.0f);
            const Linear linear = packed.linear(40, kWidth, bias.data());
            for (int count : {1, 3, 11}) {
                std::vector<float> to(count * 40);
                superdraft_linear(&linear, rows.data(), count, to.data(), 1);
                print("product", to.data(), to.size());
            }
        }
    std::vector<Packed> kept;
    kept.reserve(4 * kLayers + 1);
    const auto layer_of = [&](int outputs, int inputs) {
        kept.emplace_back(kTypes[kept.size() % std::size(kTypes)], outputs, inputs, 4);
        return kept.back().linear(outputs, inputs);
    };
    std::vector<float> norm(kInner);
    for (float& number : norm) number = 1.0f + random_number(0.2f);
    std::vector<Layer> layers;
    for (int i = 0; i < kLayers; ++i) {
        const Linear qkv = layer_of((kHeads + 2 * kKvHeads) * kDim, kWidth), output = layer_of(kWidth, kHeads * kDim);
        const Linear gate_up = layer_of(2 * kInner, kWidth), down = layer_of(kWidth, kInner);
        layers.push_back({norm.data(), qkv, norm.data(), norm.data(), output, i ? norm.data() : nullptr, norm.data(),
                          gate_up, down, nullptr, i ? 100 : 1 << 30, 0});
    }
    const Model model{layers.data(), norm.data(), layer_of(96, kWidth), kLayers, kWidth, kHeads, kKvHeads, kDim, kDim,
                      Activation::GELU, 1e-5f, 0.125f, 1.0f};
    const size_t cell_numbers = (size_t)kKvHeads * kCells * kDim;
    std::vector<uint16_t> cache(2 * kLayers * 2 * cell_numbers);
    uint16_t *keys[kLayers], *values[kLayers];
    for (int i = 0; i < kLayers; ++i)
        keys[i] = cache.data() + 4 * i * cell_numbers, values[i] = cache.data() + (4 * i + 2) * cell_numbers;
    void* memory = superdraft_new_memory();
    for (const auto& counts : {std::vector<int32_t>{300, 40}, std::vector<int32_t>{1, 1}}) {
        static int32_t starts[2] = {0, 0};
        const int32_t slots[2] = {0, 1}, num_rows = counts[0] + counts[1], wanted[2] = {counts[0] - 1, num_rows - 1};
        const int32_t bases[2] = {starts[0] + counts[0], starts[1] + counts[1]};
        const std::vector<float> inputs = random_numbers((size_t)num_rows * kWidth, 2.0f);
        const std::vector<float> cosines((size_t)num_rows * kDim, 0.8f);
        std::vector<float> sines((size_t)num_rows * kDim, 0.6f), logits(2 * 96);
        for (size_t i = 0; i < sines.size(); ++i)
            if (i % kDim < kDim / 2) sines[i] = -0.6f;
        const Batch batch{inputs.data(), cosines.data(), sines.data(), slots, starts, counts.data(), bases, nullptr, wanted,
                          keys, values, logits.data(), nullptr, (int64_t)cell_numbers, (int64_t)kCells * kDim, num_rows, 2,
                          2, 2};
        superdraft_forward(&model, &batch, memory);
        print("logit", logits.data(), logits.size());
        for (int i = 0; i < 2; ++i) starts[i] += counts[i];
    }
    superdraft_delete_memory(memory);
}
