/* An LSTM in bfloat16 with float32 gates and cells: the gates of one frame, or a whole layer.
 * Included by bf16_kernels.c.
 *
 * `sums` are rows x 4 cells values before the gates' sigmoid and tanh, in torch's order: input,
 * forget, candidate, output.
 */

/* The gates of `count` cells of a row: the sums of its gates are `cells` apart. */
ALWAYS void lstm_cells(int64_t count, int64_t cells, const uint16_t *restrict sums,
                       const float *restrict before, float *restrict after,
                       uint16_t *restrict output) {
    for (int64_t i = 0; i < count; i++) {
        float admit = sigmoid(wide(sums[i]));
        float forget = sigmoid(wide(sums[cells + i]));
        float candidate = tangent(wide(sums[2 * cells + i]));
        float emit = sigmoid(wide(sums[3 * cells + i]));
        float cell = forget * before[i] + admit * candidate;
        after[i] = cell;
        output[i] = narrow(emit * tangent(cell));
    }
}

ALWAYS void lstm_cells_backward(int64_t count, int64_t cells, const uint16_t *restrict sums,
                                const float *restrict before, const float *restrict after,
                                const uint16_t *restrict output_grad, float *restrict cell_grad,
                                uint16_t *restrict grads, uint16_t *restrict output) {
    for (int64_t i = 0; i < count; i++) {
        float admit = sigmoid(wide(sums[i]));
        float forget = sigmoid(wide(sums[cells + i]));
        float candidate = tangent(wide(sums[2 * cells + i]));
        float emit = sigmoid(wide(sums[3 * cells + i]));
        float level = tangent(after[i]);
        float arrived = wide(output_grad[i]);
        float reached = cell_grad[i] + arrived * emit * (1.0f - level * level);
        grads[i] = narrow(reached * candidate * admit * (1.0f - admit));
        grads[cells + i] = narrow(reached * before[i] * forget * (1.0f - forget));
        grads[2 * cells + i] = narrow(reached * admit * (1.0f - candidate * candidate));
        grads[3 * cells + i] = narrow(arrived * level * emit * (1.0f - emit));
        cell_grad[i] = reached * forget;
        output[i] = narrow(emit * level);
    }
}

/* before, after: [rows, cells] float32; output: [rows, cells] bfloat16. */
ALWAYS void lstm_forward(int64_t rows, int64_t cells, const uint16_t *sums, const float *before,
                         float *after, uint16_t *output) {
    for (int64_t at = 0; at < rows * cells; at += cells)
        lstm_cells(cells, cells, sums + 4 * at, before + at, after + at, output + at);
}

/* cell_grad, [rows, cells] float32: of `after` on entry, of `before` on return. sums_grad, [rows,
 * 4 cells], and output, [rows, cells], both bfloat16, are written. */
ALWAYS void lstm_backward(int64_t rows, int64_t cells, const uint16_t *sums, const float *before,
                          const float *after, const uint16_t *output_grad, float *cell_grad,
                          uint16_t *sums_grad, uint16_t *output) {
    for (int64_t at = 0; at < rows * cells; at += cells)
        lstm_cells_backward(cells, cells, sums + 4 * at, before + at, after + at,
                            output_grad + at, cell_grad + at, sums_grad + 4 * at, output + at);
}

/* A whole LSTM layer, on processors that multiply pairs of bfloat16. A tile is up to TILE rows of 64
 * sums: 4 vectors of 16. Weights are packed in the order in which a tile reads them, pair by pair of
 * the summed dimension. Only the rows from `first` to `last` of `rows` are computed. */
#if defined(__x86_64__) && (__GNUC__ >= 11 || __clang_major__ >= 10)
#include <immintrin.h>
#define PAIRS __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define TILE 6

/* out[4][TILE][16] = left, `pairs` pairs of a row, rows `apart` pairs apart, times packed weights. */
#define PRODUCT(count)                                                                         \
    PAIRS static void product_##count(int64_t pairs, const uint32_t *left, int64_t apart,      \
                                      const uint32_t *weights, float *out) {                   \
        __m512 sum[4][count];                                                                  \
        for (int k = 0; k < 4; k++)                                                            \
            for (int row = 0; row < count; row++) sum[k][row] = _mm512_setzero_ps();           \
        for (int64_t pair = 0; pair < pairs; pair++, weights += 64) {                          \
            __m512bh right[4];                                                                 \
            for (int k = 0; k < 4; k++)                                                        \
                right[k] = (__m512bh)_mm512_loadu_si512(weights + 16 * k);                     \
            for (int row = 0; row < count; row++) {                                            \
                __m512bh both = (__m512bh)_mm512_set1_epi32((int)left[row * apart + pair]);    \
                for (int k = 0; k < 4; k++)                                                    \
                    sum[k][row] = _mm512_dpbf16_ps(sum[k][row], both, right[k]);               \
            }                                                                                  \
        }                                                                                      \
        for (int k = 0; k < 4; k++)                                                            \
            for (int row = 0; row < count; row++)                                              \
                _mm512_storeu_ps(out + (k * TILE + row) * 16, sum[k][row]);                    \
    }
PRODUCT(1) PRODUCT(2) PRODUCT(3) PRODUCT(4) PRODUCT(5) PRODUCT(6)

static void (*const PRODUCTS[])(int64_t, const uint32_t *, int64_t, const uint32_t *, float *) = {
    product_1, product_2, product_3, product_4, product_5, product_6};

/* Of `left` rows as many as make tiles of equal size. */
ALWAYS int64_t rows_of_tile(int64_t left) {
    int64_t tiles = (left + TILE - 1) / TILE;
    return (left + tiles - 1) / tiles;
}

PAIRS static void layer_forward(int64_t frames, int64_t rows, int64_t first, int64_t last,
                                int64_t cells, int64_t mode, const uint32_t *weights,
                                uint16_t *sums, float *levels, uint16_t *outputs) {
    float tile[4 * TILE * 16];
    unsigned own = _mm_getcsr();
    _mm_setcsr((unsigned)mode);
    for (int64_t frame = 0; frame < frames; frame++) {
        const uint32_t *before = (const uint32_t *)(outputs + frame * rows * cells);
        for (int64_t cell = 0; cell < cells; cell += 16)
            for (int64_t row = first, count; row < last; row += count) {
                count = rows_of_tile(last - row);
                PRODUCTS[count - 1](cells / 2, before + row * cells / 2, cells / 2,
                                    weights + cell * 2 * cells, tile);
                for (int64_t j = 0; j < count; j++) {
                    int64_t at = (frame * rows + row + j) * cells + cell, next = at + rows * cells;
                    uint16_t *of_row = sums + (frame * rows + row + j) * 4 * cells + cell;
                    for (int k = 0; k < 4; k++)
                        for (int i = 0; i < 16; i++)
                            of_row[k * cells + i] = narrow(wide(of_row[k * cells + i]) +
                                                           tile[(k * TILE + j) * 16 + i]);
                    lstm_cells(16, cells, of_row, levels + at, levels + next, outputs + next);
                }
            }
    }
    _mm_setcsr(own);
}

PAIRS static void layer_backward(int64_t frames, int64_t rows, int64_t first, int64_t last,
                                 int64_t cells, int64_t mode, const uint32_t *weights,
                                 const uint16_t *sums, const float *levels,
                                 const uint16_t *grads, float *cell_grad, uint16_t *sums_grad) {
    float tile[4 * TILE * 16] = {0};
    uint16_t arrived[64], unused[64];
    unsigned own = _mm_getcsr();
    _mm_setcsr((unsigned)mode);
    for (int64_t frame = frames - 1; frame >= 0; frame--)
        for (int64_t cell = 0; cell < cells; cell += 64)
            for (int64_t row = first, count; row < last; row += count) {
                count = rows_of_tile(last - row);
                if (frame + 1 < frames)
                    PRODUCTS[count - 1](
                        2 * cells,
                        (const uint32_t *)(sums_grad + ((frame + 1) * rows + row) * 4 * cells),
                        2 * cells, weights + cell * 2 * cells, tile);
                for (int64_t j = 0; j < count; j++) {
                    int64_t place = frame * rows + row + j, at = place * cells + cell;
                    for (int i = 0; i < 64; i++)
                        arrived[i] = narrow(wide(grads[at + i]) +
                                            tile[(i / 16 * TILE + j) * 16 + i % 16]);
                    lstm_cells_backward(64, cells, sums + place * 4 * cells + cell, levels + at,
                                        levels + at + rows * cells, arrived,
                                        cell_grad + (row + j) * cells + cell,
                                        sums_grad + place * 4 * cells + cell, unused);
                }
            }
    _mm_setcsr(own);
}

/* Whether the processor can compute a whole layer. */
int64_t omni_has_pairs(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
/* How this thread rounds, and whether denormals are zero to it. */
int64_t omni_float_mode(void) { return _mm_getcsr(); }
#else
int64_t omni_has_pairs(void) { return 0; }
int64_t omni_float_mode(void) { return 0; }
static void layer_forward() {} /* of any arguments: nobody calls it */
static void layer_backward() {}
#endif

/* weights: [4 cells, cells] as pairs of inputs; packed: by 16 cells, pair, gate. */
void omni_lstm_pack(int64_t cells, const uint32_t *restrict weights, uint32_t *restrict packed) {
    for (int64_t cell = 0; cell < cells; cell += 16)
        for (int64_t gate = 0; gate < 4; gate++)
            for (int64_t i = 0; i < 16; i++) {
                const uint32_t *from = weights + (gate * cells + cell + i) * (cells / 2);
                uint32_t *to = packed + cell * 2 * cells + gate * 16 + i;
                for (int64_t pair = 0; pair < cells / 2; pair++) to[pair * 64] = from[pair];
            }
}

/* weights: [4 cells, cells]; packed for their transpose: by 64 cells, pair of gate sums. */
void omni_lstm_pack_back(int64_t cells, const uint16_t *restrict weights,
                         uint32_t *restrict packed) {
    for (int64_t pair = 0; pair < 2 * cells; pair++) {
        const uint16_t *from = weights + 2 * pair * cells;
        for (int64_t cell = 0; cell < cells; cell += 64)
            for (int64_t i = 0; i < 64; i++)
                packed[cell * 2 * cells + pair * 64 + i] =
                    (uint32_t)from[cell + i] | (uint32_t)from[cells + cell + i] << 16;
    }
}

/* sums, [frames, rows, 4 cells]: what comes from the inputs on entry, all on return. levels and
 * outputs, [frames + 1, rows, cells]: the first is there. mode: `omni_float_mode` of the caller. */
void omni_lstm_layer_forward(int64_t frames, int64_t rows, int64_t first, int64_t last,
                             int64_t cells, int64_t mode, const uint32_t *weights,
                             uint16_t *sums, float *levels, uint16_t *outputs) {
    layer_forward(frames, rows, first, last, cells, mode, weights, sums, levels, outputs);
}

/* grads, [frames, rows, cells], and cell_grad of the last frame; cell_grad is of the first on
 * return, and sums_grad, [frames, rows, 4 cells], written. */
void omni_lstm_layer_backward(int64_t frames, int64_t rows, int64_t first, int64_t last,
                              int64_t cells, int64_t mode, const uint32_t *weights,
                              const uint16_t *sums, const float *levels, const uint16_t *grads,
                              float *cell_grad, uint16_t *sums_grad) {
    layer_backward(frames, rows, first, last, cells, mode, weights, sums, levels, grads,
                   cell_grad, sums_grad);
}
