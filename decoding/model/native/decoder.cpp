// A Llama-like decoder's forward with quantised linear layers, and the functions that Python calls.
//
// One parallel region spans the whole forward. Between its phases all threads meet; within a phase each takes the next
// piece of work when it is ready, so a thread that lost its core to another program does not hold up its share.

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

#include <omp.h>

#include "attention.h"
#include "packing.h"
#include "products.h"
#include "simd.h"

using namespace superdraft;

namespace {

struct Layer {
    const float* input_norm;  // [width]
    Linear qkv;
    const float* query_norm;  // [head_dim], or null
    const float* key_norm;
    Linear output;
    const float* post_attention_norm;  // [width], or null: of what is added to the residual stream
    const float* mlp_norm;
    Linear gate_up;
    Linear down;
    const float* post_mlp_norm;
    int32_t window;    // positions that a position sees, itself included
    int32_t rotation;  // which of the rotary embeddings; -1: none
};

enum class Activation : int32_t { SiLU, GELU };

struct Model {
    const Layer* layers;
    const float* norm;
    Linear head;
    int32_t num_layers;
    int32_t width;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t rotary_dim;  // the first numbers of a head, which are rotated
    Activation activation;
    float epsilon;
    float scaling;   // of attention
    float residual;  // of what is added to the residual stream
};

// Rows to run. Rows at consecutive positions of one text form a segment; segments of one slot follow one another.
struct Batch {
    const float* embeddings;  // [rows, width]
    const float* cosines;     // [rotations, rows, rotary_dim]
    const float* sines;       // [rotations, rows, rotary_dim], the first half negated
    const int32_t* slots;     // [segments]
    const int32_t* starts;    // [segments], position of the first row
    const int32_t* counts;    // [segments], rows
    const int32_t* bases;     // [segments], positions whose cells have the same number
    const int32_t* paths;     // of segment after segment, the cells of positions [base, start + count)
    const int32_t* kept;      // [kept], rows whose logits are wanted
    uint16_t* const* keys;    // [layers], each [slots, kv_heads, max_len, head_dim]
    uint16_t* const* values;
    float* logits;    // [kept, outputs of the head]
    double* seconds;  // [phases of a layer, then of the head], time to add to; or null
    int64_t slot_stride;
    int64_t head_stride;
    int32_t num_rows;
    int32_t num_segments;
    int32_t num_kept;
    int32_t num_threads;
};

// Python passes these structs as those of `structs.py`, with pointers of eight bytes and no other padding than at the end.
static_assert(sizeof(Matrix) == 24 && offsetof(Matrix, type) == 16);
static_assert(sizeof(Linear) == 64 && offsetof(Linear, bias) == 48 && offsetof(Linear, num_outputs) == 56);
static_assert(sizeof(Layer) == 312 && offsetof(Layer, qkv) == 8 && offsetof(Layer, query_norm) == 72);
static_assert(offsetof(Layer, output) == 88 && offsetof(Layer, post_attention_norm) == 152);
static_assert(offsetof(Layer, gate_up) == 168 && offsetof(Layer, post_mlp_norm) == 296 && offsetof(Layer, window) == 304);
static_assert(sizeof(Model) == 120 && offsetof(Model, head) == 16 && offsetof(Model, num_layers) == 80);
static_assert(offsetof(Model, activation) == 104 && offsetof(Model, residual) == 116);
static_assert(sizeof(Batch) == 136 && offsetof(Batch, keys) == 72 && offsetof(Batch, seconds) == 96);
static_assert(offsetof(Batch, slot_stride) == 104 && offsetof(Batch, num_rows) == 120);

constexpr int kFewRows = 8;  // a segment of fewer rows is attended row by row
constexpr int kQueriesAtOnce = 64;

// Attention of one key-value head: a part of the text for some rows of one slot, or the whole text for a block of rows.
struct Work {
    int row, count, head, part;
};

template <typename Item>
void fit(std::vector<Item>& items, size_t size) {
    if (items.size() < size) items.resize(size);
}

struct ActivationMemory {
    std::vector<ActivationGroup> groups;

    void reserve(ptrdiff_t num_rows, int num_inputs) {
        fit(groups, (num_rows + kRowsAtOnce - 1) / kRowsAtOnce * (num_inputs / kGroup));
    }

    Activations with(int num_inputs) { return {groups.data(), num_inputs / kGroup}; }
};

// Kept from one forward to the next, and grown when a forward needs more.
struct Memory {
    std::vector<float> hidden, changes, qkv, attended, partials, blocks;
    ActivationMemory inputs, gated;
};

float norm_factor(const float* values, int width, float epsilon) {
    Floats squares{};
    for (int d = 0; d < width; d += kLanes) squares += load<Floats>(values + d) * load<Floats>(values + d);
    return 1.0f / std::sqrt(sum(squares) / width + epsilon);
}

void write_norm(const Activations& to, ptrdiff_t row, const float* hidden, const float* weight, float epsilon) {
    const float factor = norm_factor(hidden, to.num_groups * kGroup, epsilon);
    for (int group = 0; group < to.num_groups; ++group) {
        const int d = group * kGroup;
        to.write(row, group, load<Floats>(hidden + d) * factor * load<Floats>(weight + d),
                 load<Floats>(hidden + d + kLanes) * factor * load<Floats>(weight + d + kLanes));
    }
}

void add_norm(float* hidden, const float* change, int width, const float* weight, float epsilon) {
    const float factor = norm_factor(change, width, epsilon);
    for (int d = 0; d < width; d += kLanes)
        store(hidden + d, load<Floats>(hidden + d) + load<Floats>(change + d) * factor * load<Floats>(weight + d));
}

void norm_head(float* head, int dim, const float* weight, float epsilon) {
    const float factor = norm_factor(head, dim, epsilon);
    for (int d = 0; d < dim; d += kLanes) store(head + d, load<Floats>(head + d) * factor * load<Floats>(weight + d));
}

void rotate(float* head, int dim, const float* cosines, const float* sines) {
    const int half = dim / 2;
    for (int d = 0; d < half; d += kLanes) {
        const Floats low = load<Floats>(head + d), high = load<Floats>(head + half + d);
        store(head + d, low * load<Floats>(cosines + d) + high * load<Floats>(sines + d));
        store(head + half + d, high * load<Floats>(cosines + half + d) + low * load<Floats>(sines + half + d));
    }
}

constexpr int kPhases = 9;  // of a layer
constexpr int kHeadPhases = 2;

// Threads meet here some 300 times per forward. OpenMP's own barrier puts threads to sleep as soon as the process has more
// of them than cores, as it does once a second thread of the program has used OpenMP, and waking them takes longer than
// most phases do.
class Barrier {
   public:
    void wait(int num_threads) {
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int i = 0; round_.load(std::memory_order_acquire) == round; ++i)
            if (i < kSpins)
                relax();
            else
                std::this_thread::yield();  // a thread that is awaited may need this core
    }

   private:
    static constexpr int kSpins = 2000;
    std::atomic<int> arrived_{0}, round_{0};
};

class Forward {
   public:
    Forward(const Model& model, const Batch& batch, Memory& memory)
        : model_(model),
          batch_(batch),
          memory_(memory),
          num_groups_(model.num_heads / model.num_kv_heads),
          heads_width_(model.num_heads * model.head_dim),
          qkv_width_(heads_width_ + 2 * model.num_kv_heads * model.head_dim),
          partial_size_(num_groups_ * (model.head_dim + 2)),
          counters_(new std::atomic<int>[model.num_layers * kPhases + kHeadPhases]()) {
        plan_attention();
        const size_t rows = batch.num_rows;
        fit(memory.hidden, rows * model.width);
        fit(memory.changes, rows * model.width);
        fit(memory.qkv, rows * qkv_width_);
        fit(memory.attended, rows * heads_width_);
        fit(memory.partials, (size_t)num_partials_ * partial_size_);
        fit(memory.blocks, batch.num_threads * BlockMemory::size(model.head_dim));
        memory.inputs.reserve(rows, std::max(model.width, heads_width_));
        memory.gated.reserve(rows, model.layers[0].down.num_inputs);
        std::copy_n(batch.embeddings, rows * model.width, memory.hidden.data());
    }

    void run() {
#pragma omp parallel num_threads(batch_.num_threads)
        {
            for (int layer = 0; layer < model_.num_layers; ++layer) run_layer(layer);
            run_head();
        }
    }

   private:
    using Clock = std::chrono::steady_clock;

    const Model& model_;
    const Batch& batch_;
    Memory& memory_;
    const int num_groups_, heads_width_, qkv_width_, partial_size_;
    int num_partials_ = 0;
    std::vector<int> slots_, positions_;  // per row
    std::vector<Places> places_;          // per row
    std::vector<int> partials_;           // per row: where its partial results begin; -1: it is part of a block
    std::vector<Work> work_;
    Barrier barrier_;
    const std::unique_ptr<std::atomic<int>[]> counters_;

    static int num_parts(int position) { return position / kPart + 1; }

    void plan_attention() {
        const int32_t* path = batch_.paths;
        int first_of_slot = 0;  // the first row of the present run of rows that are attended one by one in one slot
        for (int segment = 0, row = 0; segment < batch_.num_segments; ++segment) {
            const int count = batch_.counts[segment], slot = batch_.slots[segment];
            const int stop = batch_.starts[segment] + count, base = std::min(batch_.bases[segment], stop);
            const bool is_block = count >= kFewRows;
            if (is_block || (row > 0 && slots_.back() != slot)) {
                plan_parts(first_of_slot, row);
                first_of_slot = is_block ? row + count : row;
            }
            for (int i = 0; i < count; ++i) {
                slots_.push_back(slot);
                positions_.push_back(batch_.starts[segment] + i);
                places_.push_back({base, path});
                partials_.push_back(is_block ? -1 : num_partials_);
                if (!is_block) num_partials_ += model_.num_kv_heads * num_parts(positions_.back());
            }
            if (is_block) plan_blocks(row, count);
            row += count;
            path += stop - base;
        }
        plan_parts(first_of_slot, batch_.num_rows);
    }

    // The rows [begin, end) of one slot, part after part of the text: what lies in the same cells for all of them is read
    // together, the rest row by row.
    void plan_parts(int begin, int end) {
        if (begin == end) return;
        int furthest = 0, shared = num_parts(positions_[begin]);
        for (int row = begin; row < end; ++row) {
            furthest = std::max(furthest, num_parts(positions_[row]));
            shared = std::min(shared, places_[row].base / kPart);
        }
        for (int head = 0; head < model_.num_kv_heads; ++head)
            for (int part = 0; part < furthest; ++part) {
                if (part < shared) {
                    work_.push_back({begin, end - begin, head, part});
                    continue;
                }
                for (int row = begin; row < end; ++row)
                    if (part < num_parts(positions_[row])) work_.push_back({row, 1, head, part});
            }
    }

    // The last rows read the most: they come first, so that no thread is left with them at the end.
    void plan_blocks(int row, int count) {
        const int block = std::max(1, kQueryBlock / num_groups_);
        for (int first = (count - 1) / block * block; first >= 0; first -= block)
            for (int head = 0; head < model_.num_kv_heads; ++head)
                work_.push_back({row + first, std::min(block, count - first), head, 0});
    }

    // Call `work(begin, end)` for pieces of [0, count) until all are taken, then wait for the other threads.
    template <typename Function>
    void share(int phase, int count, int piece, Function work) {
        const bool is_timed = batch_.seconds != nullptr && omp_get_thread_num() == 0;
        const auto start = is_timed ? Clock::now() : Clock::time_point();
        std::atomic<int>& next = counters_[phase];
        for (int begin; (begin = next.fetch_add(piece, std::memory_order_relaxed)) < count;)
            work(begin, std::min(begin + piece, count));
        barrier_.wait(omp_get_num_threads());
        if (!is_timed) return;
        const int past_layers = phase - model_.num_layers * kPhases;
        batch_.seconds[past_layers < 0 ? phase % kPhases : kPhases + past_layers] +=
            std::chrono::duration<double>(Clock::now() - start).count();
    }

    // Pieces of equal size, a few for each thread.
    int piece(int count) const { return std::max(1, count / (4 * batch_.num_threads)); }

    float* hidden(int row) const { return memory_.hidden.data() + (ptrdiff_t)row * model_.width; }
    float* change(int row) const { return memory_.changes.data() + (ptrdiff_t)row * model_.width; }
    float* qkv(int row) const { return memory_.qkv.data() + (ptrdiff_t)row * qkv_width_; }
    float* attended(int row) const { return memory_.attended.data() + (ptrdiff_t)row * heads_width_; }
    ptrdiff_t place(int row, int head) const { return slots_[row] * batch_.slot_stride + head * batch_.head_stride; }
    int own_cell(int row) const { return places_[row].cell(positions_[row]); }

    // What a part of the text gives to a row's query: the one with this number among those of a key-value head.
    Query query(int row, int head, int part, int group) const {
        const int index = partials_[row] + head * num_parts(positions_[row]) + part;
        float* begin = memory_.partials.data() + (ptrdiff_t)index * partial_size_;
        const int dim = model_.head_dim;
        return {qkv(row) + (head * num_groups_ + group) * dim, begin + group, begin + num_groups_ + group,
                begin + 2 * num_groups_ + group * dim};
    }

    void run_layer(int index) {
        const Layer& layer = model_.layers[index];
        const int rows = batch_.num_rows, phase = index * kPhases;
        const Activations normed = memory_.inputs.with(model_.width), mixed = memory_.inputs.with(heads_width_);
        const Activations gated = memory_.gated.with(layer.down.num_inputs);
        const float* previous_norm = index == 0 ? nullptr : model_.layers[index - 1].post_mlp_norm;
        share(phase, rows, piece(rows), [&](int begin, int end) {
            for (int row = begin; row < end; ++row) {
                add_change(row, previous_norm);
                write_norm(normed, row, hidden(row), layer.input_norm, model_.epsilon);
            }
        });
        share(phase + 1, layer.qkv.num_panels(), piece(layer.qkv.num_panels()), [&](int begin, int end) {
            product(layer.qkv, begin, end, normed, rows, qkv(0), qkv_width_, false);
        });
        share(phase + 2, rows, piece(rows), [&](int begin, int end) {
            for (int row = begin; row < end; ++row) rotate_and_cache(layer, index, row);
        });
        share(phase + 3, (int)work_.size(), 1, [&](int begin, int) { attend(layer, index, work_[begin]); });
        share(phase + 4, rows, piece(rows), [&](int begin, int end) {
            for (int row = begin; row < end; ++row) {
                if (partials_[row] >= 0) join_parts(row);
                mixed.write_row(row, attended(row));
            }
        });
        share(phase + 5, layer.output.num_panels(), piece(layer.output.num_panels()), [&](int begin, int end) {
            add_product(layer.output, begin, end, mixed, layer.post_attention_norm);
        });
        share(phase + 6, rows, piece(rows), [&](int begin, int end) {
            for (int row = begin; row < end; ++row) {
                add_change(row, layer.post_attention_norm);
                write_norm(normed, row, hidden(row), layer.mlp_norm, model_.epsilon);
            }
        });
        share(phase + 7, gated.num_groups, piece(gated.num_groups), [&](int begin, int end) {
            gate(layer.gate_up, begin, end, normed, gated);
        });
        share(phase + 8, layer.down.num_panels(), piece(layer.down.num_panels()), [&](int begin, int end) {
            add_product(layer.down, begin, end, gated, layer.post_mlp_norm);
        });
    }

    // Add outputs of a product to the residual stream; with a norm, which needs all of them, `add_change` does so.
    void add_product(const Linear& linear, int begin, int end, const Activations& inputs, const float* norm) {
        const bool is_direct = norm == nullptr;
        product(linear, begin, end, inputs, batch_.num_rows, is_direct ? hidden(0) : change(0), model_.width, is_direct,
                model_.residual);
    }

    void add_change(int row, const float* norm) {
        if (norm != nullptr) add_norm(hidden(row), change(row), model_.width, norm, model_.epsilon);
    }

    void run_head() {
        const Activations normed = memory_.inputs.with(model_.width);
        const int phase = model_.num_layers * kPhases, kept = batch_.num_kept;
        share(phase, kept, piece(kept), [&](int begin, int end) {
            for (int i = begin; i < end; ++i) {
                add_change(batch_.kept[i], model_.layers[model_.num_layers - 1].post_mlp_norm);
                write_norm(normed, i, hidden(batch_.kept[i]), model_.norm, model_.epsilon);
            }
        });
        share(phase + 1, model_.head.num_panels(), piece(model_.head.num_panels()), [&](int begin, int end) {
            product(model_.head, begin, end, normed, kept, batch_.logits, model_.head.num_outputs, false);
        });
    }

    // Norms and rotary embeddings of a row's queries and keys; its keys and values go into the cache.
    void rotate_and_cache(const Layer& layer, int index, int row) {
        const int dim = model_.head_dim;
        float* head = qkv(row);
        for (int i = 0; i < model_.num_heads; ++i, head += dim) norm_and_rotate(layer, row, head, layer.query_norm);
        for (int i = 0; i < model_.num_kv_heads; ++i, head += dim) {
            norm_and_rotate(layer, row, head, layer.key_norm);
            uint16_t* key = batch_.keys[index] + place(row, i) + (ptrdiff_t)own_cell(row) * dim;
            for (int d = 0; d < dim; d += kLanes) to_bfloat16(key + d, load<Floats>(head + d));
        }
        for (int i = 0; i < model_.num_kv_heads; ++i, head += dim) {
            uint16_t* value = batch_.values[index] + place(row, i) + (ptrdiff_t)own_cell(row) * dim;
            for (int d = 0; d < dim; d += kLanes) to_bfloat16(value + d, load<Floats>(head + d));
        }
    }

    void norm_and_rotate(const Layer& layer, int row, float* head, const float* norm) const {
        if (norm != nullptr) norm_head(head, model_.head_dim, norm, model_.epsilon);
        if (layer.rotation < 0) return;
        const ptrdiff_t place = ((ptrdiff_t)layer.rotation * batch_.num_rows + row) * model_.rotary_dim;
        rotate(head, model_.rotary_dim, batch_.cosines + place, batch_.sines + place);
    }

    void attend(const Layer& layer, int index, const Work& work) {
        const int dim = model_.head_dim;
        const ptrdiff_t at = place(work.row, work.head);
        const Attended head{batch_.keys[index] + at, batch_.values[index] + at, num_groups_, dim, model_.scaling};
        if (partials_[work.row] >= 0) {
            attend_part(layer, head, work);
            return;
        }
        const int offset = work.head * num_groups_ * dim;
        const BlockMemory memory(memory_.blocks.data() + omp_get_thread_num() * BlockMemory::size(dim), dim);
        attend_block(head, places_[work.row], qkv(work.row) + offset, qkv_width_, positions_[work.row], work.count,
                     layer.window, attended(work.row) + offset, heads_width_, memory);
    }

    void attend_part(const Layer& layer, const Attended& head, const Work& work) {
        Query queries[kQueriesAtOnce];
        int32_t cells[kPart];
        int num_queries = 0, begin = 0, count = 0;
        const int32_t* read = nullptr;
        const auto flush = [&] {
            if (num_queries > 0) superdraft::attend(head, queries, num_queries, begin, count, read);
            num_queries = 0;
        };
        for (int row = work.row; row < work.row + work.count; ++row) {
            const int position = positions_[row];
            const int first = std::max(work.part * kPart, position - layer.window + 1);
            const int stop = std::min((work.part + 1) * kPart, position + 1);
            if (first >= stop) {  // beyond the window
                for (int group = 0; group < num_groups_; ++group)
                    *query(row, work.head, work.part, group).largest = kNever;
                continue;
            }
            if (first != begin || stop - first != count) flush();
            begin = first, count = stop - first;
            if (stop > places_[row].base) {  // only of a row that has this part for itself
                for (int i = 0; i < count; ++i) cells[i] = places_[row].cell(begin + i);
                read = cells;
            }
            for (int group = 0; group < num_groups_; ++group) {
                if (num_queries == kQueriesAtOnce) flush();
                queries[num_queries++] = query(row, work.head, work.part, group);
            }
        }
        flush();
    }

    // Attention of a row from its parts.
    void join_parts(int row) {
        const int dim = model_.head_dim, parts = num_parts(positions_[row]);
        for (int head = 0; head < model_.num_heads; ++head) {
            const int kv_head = head / num_groups_, group = head % num_groups_;
            float largest = kNever, total = 0;
            for (int part = 0; part < parts; ++part)
                largest = std::max(largest, *query(row, kv_head, part, group).largest);
            float* to = attended(row) + head * dim;
            std::fill_n(to, dim, 0.0f);
            for (int part = 0; part < parts; ++part) {
                const Query found = query(row, kv_head, part, group);
                if (*found.largest == kNever) continue;
                const float weight = std::exp(*found.largest - largest);
                total += weight * *found.sum;
                for (int d = 0; d < dim; d += kLanes)
                    store(to + d, load<Floats>(to + d) + load<Floats>(found.mixed + d) * weight);
            }
            for (int d = 0; d < dim; d += kLanes) store(to + d, load<Floats>(to + d) * (1.0f / total));
        }
    }

    Floats activated(Floats values) const {
        if (model_.activation == Activation::SiLU) return values / (1.0f + exponential(-values));
        // The approximation of GELU by the hyperbolic tangent: (1 + tanh x) / 2 = 1 / (1 + e^-2x).
        return values / (1.0f + exponential(-1.5957691216f * (values + 0.044715f * values * values * values)));
    }

    // activation(gate) * up, rounded, for groups [begin, end) of the inputs of `down`. Gates come before ups.
    void gate(const Linear& gate_up, int begin, int end, const Activations& normed, const Activations& gated) {
        const int panels_per_group = kGroup / kPanel, first_up = gated.num_groups * panels_per_group;
        Floats gates[kRowsAtOnce], ups[kRowsAtOnce], results[kGroup / kPanel][kRowsAtOnce];
        for (int group = begin; group < end; ++group)
            for (int first = 0; first < batch_.num_rows; first += kRowsAtOnce) {
                const int count = std::min(kRowsAtOnce, batch_.num_rows - first);
                for (int i = 0; i < panels_per_group; ++i) {
                    const int panel = group * panels_per_group + i;
                    panel_product(gate_up, panel, normed, first, count, gates);
                    panel_product(gate_up, first_up + panel, normed, first, count, ups);
                    for (int row = 0; row < count; ++row)
                        results[i][row] = activated(gates[row]) * ups[row];
                }
                for (int row = 0; row < count; ++row) gated.write(first + row, group, results[0][row], results[1][row]);
            }
    }
};

}  // namespace

#define SUPERDRAFT_API extern "C" __attribute__((visibility("default")))

// Sizes and constants that Python relies on: `expected_layout` in `structs.py`.
SUPERDRAFT_API void superdraft_layout(int32_t* to) {
    const int32_t layout[] = {sizeof(Matrix), sizeof(Linear), sizeof(Layer), sizeof(Model), sizeof(Batch), kGroup, kPanel,
                              kSuperblock, kLanes, kQueryBlock, kPhases + kHeadPhases, kNumFormats};
    std::copy(std::begin(layout), std::end(layout), to);
}

SUPERDRAFT_API void* superdraft_new_memory() { return new Memory; }

SUPERDRAFT_API void superdraft_delete_memory(void* memory) { delete (Memory*)memory; }

SUPERDRAFT_API void superdraft_forward(const Model* model, const Batch* batch, void* memory) {
    Forward(*model, *batch, *(Memory*)memory).run();
}

// One linear layer: to[rows, outputs] from float32 rows[rows, inputs].
SUPERDRAFT_API void superdraft_linear(
    const Linear* linear, const float* rows, int64_t num_rows, float* to, int32_t num_threads) {
    ActivationMemory memory;
    memory.reserve(num_rows, linear->num_inputs);
    const Activations activations = memory.with(linear->num_inputs);
    const int num_panels = linear->num_panels(), piece = std::max(1, num_panels / (4 * num_threads));
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for
        for (int64_t row = 0; row < num_rows; ++row) activations.write_row(row, rows + row * linear->num_inputs);
#pragma omp for schedule(dynamic)
        for (int begin = 0; begin < num_panels; begin += piece)
            product(*linear, begin, std::min(begin + piece, num_panels), activations, num_rows, to, linear->num_outputs,
                    false);
    }
}

// Bytes of a panel of a format.
SUPERDRAFT_API int64_t superdraft_panel_bytes(int32_t format, int32_t num_inputs) {
    return kFormats[format].panel_bytes(num_inputs / kGroup);
}

// The format that holds a type's levels as they are; -1: the type is one of floating point.
SUPERDRAFT_API int32_t superdraft_format_of(int32_t type) { return format_of((Type)type); }

// Rows of a matrix -> panels of a format: the type's own, or INT4 or INT8, to which floating point is rounded.
SUPERDRAFT_API void superdraft_pack(
    const Matrix* matrix, const int32_t* rows, int32_t num_outputs, int32_t format, uint8_t* to, int32_t num_threads) {
    const Format& layout = kFormats[format];
    const int num_groups = matrix->num_inputs / kGroup, num_panels = (num_outputs + kPanel - 1) / kPanel;
    const bool is_rounded = format_of(matrix->type) < 0, is_int8 = layout.bits == 8;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int panel = 0; panel < num_panels; ++panel) {
        uint8_t* place = to + panel * layout.panel_bytes(num_groups);
        std::memset(place, 0, layout.panel_bytes(num_groups));
        for (int n = 0; n < kPanel && panel * kPanel + n < num_outputs; ++n) {
            const uint8_t* row = matrix->rows + rows[panel * kPanel + n] * matrix->row_bytes;
            float numbers[kGroup];
            for (int index = 0; index < num_groups; ++index) {
                if (is_rounded) read_floats(*matrix, row, index, numbers);
                const Group group = is_rounded ? rounded_group(numbers, is_int8) : read_group(*matrix, row, index);
                write_group(group, layout, place, index, n);
            }
        }
    }
}

// Rows of a matrix -> float32 [rows, inputs].
SUPERDRAFT_API void superdraft_dequantise(
    const Matrix* matrix, const int64_t* rows, int64_t num_rows, float* to, int32_t num_threads) {
    const int num_groups = matrix->num_inputs / kGroup;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t i = 0; i < num_rows; ++i)
        for (int index = 0; index < num_groups; ++index)
            read_floats(*matrix, matrix->rows + rows[i] * matrix->row_bytes, index,
                        to + (i * num_groups + index) * kGroup);
}
