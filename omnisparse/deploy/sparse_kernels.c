/* Products of a packed matrix with one vector or sixteen, LSTM layers made of them, and features.
 *
 * A matrix is packed in one of four ways (enum kind):
 *   BLOCK  bands of `height` rows (8 or 16); a band is a list of columns, each with `height` values.
 *          Without columns (NULL) every column is there: a dense matrix.
 *   CSR    rows; a row is a list of columns, each with a value.
 *   PANEL  four rows at a time, cut into panels of `height` columns (16, 32 or 64): for each panel
 *          the four counts, and for each value its place in the panel, so that x is looked up in
 *          registers. Values lie panel by panel, in a panel row by row.
 *   SLICE  sixteen rows at a time, a lane each, which visit pairs of neighbouring blocks of 16
 *          columns: at a visit each row takes up to `counts` values, its next ones, so that there
 *          are no lists to end within a visit; what is missing is zero. Sums of a row stay in its lane.
 * Values are float32, IEEE half, bfloat16 or int8 with a scale for each row.
 *
 * The second half of this file is compiled once for each instruction set and type of value (it
 * includes itself); `omni_level` says what the processor has. All products ADD to y.
 * Rows, columns and places are checked by whoever packs: nothing is checked here.
 * Every array of values and places must have 64 readable bytes behind its end.
 */
#ifndef OMNI_TYPE

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16 /* vectors of a tile */
#define MIDDLE 16384 /* floats between two factors; Python refuses higher ranks */

enum kind { BLOCK = 0, CSR = 1, PANEL = 2, SLICE = 3 };
enum type { F32 = 0, F16 = 1, BF16 = 2, I8 = 3 };
enum level { PLAIN = 0, AVX2 = 1, AVX512 = 2, NEON = 3 };

typedef struct matrix {
    int32_t rows, columns, kind, type, height, level;
    const int32_t *offsets;  /* BLOCK: of bands, in blocks; CSR, PANEL: of (four) rows, in values;
                                SLICE: of sixteen rows, in visits */
    const uint16_t *indices; /* BLOCK, CSR: columns; SLICE: first block of each visit */
    const uint8_t *counts;   /* PANEL: values of [rows / 4, panels, 4]; SLICE: of a row at a visit,
                                for [rows / 16] */
    const uint8_t *places;   /* PANEL: column of each value within its panel; SLICE: modulo 32 */
    const void *values;
    const float *scale; /* I8: of each row */
    const struct matrix *first; /* a product of two: what is multiplied before this one, or null */
} matrix;

typedef float v8 __attribute__((vector_size(32)));
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i8x __attribute__((vector_size(32)));

#pragma GCC diagnostic ignored "-Wpsabi"

/* ---- one value of each type ---- */

INLINE float one_f32(const float *p) { return *p; }
INLINE float one_bf16(const uint16_t *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE float one_i8(const int8_t *p) { return (float)*p; }
INLINE float one_f16(const uint16_t *p) {
    uint32_t half = *p, sign = (half & 0x8000u) << 16, rest = half & 0x7fffu, bits;
    float value;
    if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + (112u << 23)); /* finite: checked when it was read */
        memcpy(&value, &bits, 4);
    } else {
        value = (float)rest * 0x1p-24f; /* subnormal */
        if (sign) value = -value;
    }
    return value;
}

typedef struct {
    int64_t shift, length, half, bins; /* half: of the Fourier transform's length */
    const float *window;               /* [length] */
    const float *turns;                /* [half, 2]: cos, -sin of 2 pi k / (2 half) */
    const int32_t *first, *last;       /* [bins]: frequencies of each filter */
    const float *filters;              /* those of all filters, one after the other */
} filterbank;

/* ---- the same code for each instruction set and type of value ---- */

#define JOIN2(a, b) a##_##b
#define NAME2(a, b) JOIN2(a, b)
#define JOIN3(a, b, c) a##_##b##_##c
#define NAME3(a, b, c) JOIN3(a, b, c)
#define NAME(a) NAME3(a, OMNI_SET, OMNI_TYPE)

#define splat NAME2(splat, OMNI_SET)
#define get8 NAME2(get8, OMNI_SET)
#define get16 NAME2(get16, OMNI_SET)
#define put8 NAME2(put8, OMNI_SET)
#define sum8 NAME2(sum8, OMNI_SET)
#define choose NAME2(choose, OMNI_SET)
#define exp8 NAME2(exp8, OMNI_SET)
#define sigmoid8 NAME2(sigmoid8, OMNI_SET)
#define tanh8 NAME2(tanh8, OMNI_SET)
#define log8 NAME2(log8, OMNI_SET)
#define gates_any NAME2(gates_any, OMNI_SET)
#define norm_any NAME2(norm_any, OMNI_SET)
#define fbank_any NAME2(fbank_any, OMNI_SET)
#define join_any NAME2(join_any, OMNI_SET)

#define OMNI_SET plain
#define TARGET
#include "sparse_vectors.h"
#define OMNI_TYPE f32
#include "sparse_kernels.c"
#define OMNI_TYPE f16
#include "sparse_kernels.c"
#define OMNI_TYPE bf16
#include "sparse_kernels.c"
#define OMNI_TYPE i8
#include "sparse_kernels.c"
#undef OMNI_SET
#undef TARGET

#if defined(__x86_64__)
#define OMNI_SET avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define HAS_AVX2
#include "sparse_vectors.h"
TARGET INLINE v8 load8_avx2_f32(const float *p) { return get8(p); }
TARGET INLINE v8 load8_avx2_f16(const uint16_t *p) {
    return (v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
TARGET INLINE v8 load8_avx2_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (v8)_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
TARGET INLINE v8 load8_avx2_i8(const int8_t *p) {
    return (v8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
#define OMNI_TYPE f32
#include "sparse_kernels.c"
#define OMNI_TYPE f16
#include "sparse_kernels.c"
#define OMNI_TYPE bf16
#include "sparse_kernels.c"
#define OMNI_TYPE i8
#include "sparse_kernels.c"
#undef OMNI_SET
#undef TARGET
#undef HAS_AVX2

#define OMNI_SET avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")))
#define HAS_AVX512
#include "sparse_vectors.h"
TARGET INLINE v8 load8_avx512_f32(const float *p) { return get8(p); }
TARGET INLINE v8 load8_avx512_f16(const uint16_t *p) {
    return (v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
TARGET INLINE v8 load8_avx512_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (v8)_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
TARGET INLINE v8 load8_avx512_i8(const int8_t *p) {
    return (v8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
/* Sixteen values, those beyond the mask zero and never read. */
TARGET INLINE __m512 some_f32(__mmask16 mask, const float *p) {
    return _mm512_maskz_loadu_ps(mask, p);
}
TARGET INLINE __m512 some_f16(__mmask16 mask, const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
TARGET INLINE __m512 some_bf16(__mmask16 mask, const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
TARGET INLINE __m512 some_i8(__mmask16 mask, const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, p)));
}
#define OMNI_TYPE f32
#include "sparse_kernels.c"
#define OMNI_TYPE f16
#include "sparse_kernels.c"
#define OMNI_TYPE bf16
#include "sparse_kernels.c"
#define OMNI_TYPE i8
#include "sparse_kernels.c"
#undef OMNI_SET
#undef TARGET
#undef HAS_AVX512
#endif

#if defined(__aarch64__)
#define OMNI_SET neon
#define TARGET
#define HAS_NEON
#include "sparse_vectors.h"
INLINE v8 both(float32x4_t low, float32x4_t high) {
    v8 v;
    memcpy(&v, &low, 16);
    memcpy((char *)&v + 16, &high, 16);
    return v;
}
INLINE v8 load8_neon_f32(const float *p) { return get8(p); }
INLINE v8 load8_neon_f16(const uint16_t *p) {
    float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(p));
    return both(vcvt_f32_f16(vget_low_f16(half)), vcvt_f32_f16(vget_high_f16(half)));
}
INLINE v8 load8_neon_bf16(const uint16_t *p) {
    uint16x8_t half = vld1q_u16(p);
    return both(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)),
                vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(half), 16)));
}
INLINE v8 load8_neon_i8(const int8_t *p) {
    int16x8_t wide = vmovl_s8(vld1_s8(p));
    return both(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))));
}
#define OMNI_TYPE f32
#include "sparse_kernels.c"
#define OMNI_TYPE f16
#include "sparse_kernels.c"
#define OMNI_TYPE bf16
#include "sparse_kernels.c"
#define OMNI_TYPE i8
#include "sparse_kernels.c"
#undef OMNI_SET
#undef TARGET
#undef HAS_NEON
#endif

#define OMNI_SET plain /* from here on */

/* ---- which of them ---- */

int omni_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("bmi2"))
        return AVX512;
    unsigned a, b, c, d; /* clang 14 does not know "f16c" */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C))
        return AVX2;
#elif defined(__aarch64__)
    return NEON;
#endif
    return PLAIN;
}

typedef void (*product)(const matrix *, const float *, float *, int64_t);

#define TYPES(function, set) \
    {function##_##set##_f32, function##_##set##_f16, function##_##set##_bf16, function##_##set##_i8}
#define KINDS(set, panel, panels, slice, slices)                                \
    {{TYPES(block, set), TYPES(csr, set), TYPES(panel, set), TYPES(slice, set)}, \
     {TYPES(blocks, set), TYPES(csrs, set), TYPES(panels, set), TYPES(slices, set)}}

/* [level][one vector, many][kind][type]; panels and slices need AVX-512 and are not packed without.
 * Many are a tile, or of slices vectors as they are. */
static const product products[4][2][4][4] = {
    [PLAIN] = KINDS(plain, csr, csrs, csr, csrs),
#if defined(__x86_64__)
    [AVX2] = KINDS(avx2, csr, csrs, csr, csrs),
    [AVX512] = KINDS(avx512, panel, panels, slice, slices),
#elif defined(__aarch64__)
    [NEON] = KINDS(neon, csr, csrs, csr, csrs),
#endif
};

/* The most columns of a left factor, which Python's MAX_RANK must not exceed. */
int omni_most_rank(void) { return MIDDLE; }

/* y[row] += W x, for one vector. */
void omni_product(const matrix *w, const float *x, float *y) {
    float middle[MIDDLE + LANES];
    if (w->first) {
        memset(middle, 0, sizeof(float) * (size_t)w->columns);
        omni_product(w->first, x, middle);
        x = middle;
    }
    products[w->level][0][w->kind][w->type](w, x, y, 1);
}

static void tiles(const matrix *w, int64_t count, const float *x, float *y, float *work);

/* y[n, rows] += W x[n], for `count` vectors; `work` holds LANES * (rows + columns) floats, where a
 * product of two has the columns of what is multiplied first. */
void omni_products(const matrix *w, int64_t count, const float *x, float *y, float *work) {
    float middle[MIDDLE + LANES];
    int64_t start, most = MIDDLE / w->columns;
    if (!w->first) {
        tiles(w, count, x, y, work);
        return;
    }
    if (most > LANES) most = LANES;
    for (start = 0; start < count; start += most) {
        int64_t some = count - start < most ? count - start : most;
        memset(middle, 0, sizeof(float) * (size_t)(some * w->columns));
        tiles(w->first, some, x + start * w->first->columns, middle, work);
        tiles(w, some, middle, y + start * w->rows, work);
    }
}

static void one(const matrix *w, const float *x, float *y) {
    products[w->level][0][w->kind][w->type](w, x, y, 1);
}

/* omni_products with one matrix. */
static void tiles(const matrix *w, int64_t count, const float *x, float *y, float *work) {
    int64_t start, rows = w->rows, columns = w->columns, i, lane;
    float *inputs = work, *outputs = work + LANES * columns;
    if (w->kind == SLICE) {
        products[w->level][1][SLICE][w->type](w, x, y, count);
        return;
    }
    for (start = 0; start < count; start += LANES) {
        int64_t lanes = count - start < LANES ? count - start : LANES;
        if (lanes < 4) { /* the tile would be mostly empty */
            for (lane = 0; lane < lanes; lane++)
                one(w, x + (start + lane) * columns, y + (start + lane) * rows);
            continue;
        }
        memset(inputs, 0, sizeof(float) * (size_t)(LANES * columns));
        memset(outputs, 0, sizeof(float) * (size_t)(LANES * rows));
        for (lane = 0; lane < lanes; lane++) {
            const float *from = x + (start + lane) * columns;
            for (i = 0; i < columns; i++) inputs[i * LANES + lane] = from[i];
        }
        products[w->level][1][w->kind][w->type](w, inputs, outputs, lanes);
        for (lane = 0; lane < lanes; lane++) {
            float *to = y + (start + lane) * rows;
            for (i = 0; i < rows; i++) to[i] += outputs[i * LANES + lane];
        }
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma,f16c"))) static void gates_avx2(int64_t n, const float *g,
                                                                 float *c, float *out) {
    gates_any_avx2(n, g, c, out);
}
#endif

/* One step of `count` LSTMs: gates [count, 4 H], cell [count, H] (updated), out [count, H]. */
void omni_gates(int64_t level, int64_t count, int64_t cells, const float *gates, float *cell,
                float *out) {
    int64_t row;
    for (row = 0; row < count; row++) {
        const float *gate = gates + row * 4 * cells;
#if defined(__x86_64__)
        if (level != PLAIN)
            gates_avx2(cells, gate, cell + row * cells, out + row * cells);
        else
#endif
            gates_any(cells, gate, cell + row * cells, out + row * cells);
    }
    (void)level;
}

/* An LSTM layer, or LSTMP where `projection` is given, over `steps` frames.
 *
 * x [steps, columns of input], hidden [P] and cell [H] (both updated), y [steps, P], gates
 * [steps, 4 H], work as of omni_products for the input, and H more floats.
 */
void omni_lstm(const matrix *input, const matrix *recurrent, const matrix *projection,
               const float *bias, int64_t steps, const float *x, float *hidden, float *cell,
               float *y, float *gates, float *work) {
    int64_t wide = input->rows, cells = wide / 4, step;
    int64_t out = projection ? projection->rows : cells;
    for (step = 0; step < steps; step++)
        memcpy(gates + step * wide, bias, sizeof(float) * (size_t)wide);
    omni_products(input, steps, x, gates, work);
    for (step = 0; step < steps; step++) {
        float *gate = gates + step * wide, *to = projection ? work : y + step * out;
        omni_product(recurrent, hidden, gate);
        omni_gates(recurrent->level, 1, cells, gate, cell, to);
        if (projection) {
            memset(y + step * out, 0, sizeof(float) * (size_t)out);
            omni_product(projection, work, y + step * out);
        }
        memcpy(hidden, y + step * out, sizeof(float) * (size_t)out);
    }
}

/* Each of `count` rows of x [count, dim] less its mean, over its deviation; y may be x. */
void omni_norm(int64_t count, int64_t dim, const float *x, const float *gain, const float *bias,
               float *y) {
    int64_t row;
    for (row = 0; row < count; row++) norm_any(dim, x + row * dim, gain, bias, y + row * dim);
}

/* An LSTM layer of an encoder, as omni_lstm takes it; after it a norm where `gain` is given, and
 * pairs of frames are joined where `halves`. */
typedef struct {
    const matrix *input, *recurrent, *projection;
    const float *bias, *gain, *shift;
    int64_t halves;
} layer;

/* The next `steps` frames through all layers; returns the frames of the result, which lie at `x`.
 *
 * x [steps, columns of the first input], with room for [steps + 1, twice the widest output]; y the
 * same room; memory of each layer: hidden [P], cell [H], and where it halves the frame that waits
 * [P]; waiting [layers]: 1 where one does. Unless `final`, a frame without partner waits; gates
 * [steps + 1, 4 H] of the widest; work as of omni_lstm.
 */
int64_t omni_encoder(const layer *layers, int64_t count, int64_t steps, int64_t final, float *x,
                     float *y, float *memory, int64_t *waiting, float *gates, float *work) {
    int64_t at, size = sizeof(float);
    for (at = 0; at < count; at++) {
        const layer *w = layers + at;
        int64_t cells = w->input->rows / 4, out = w->projection ? w->projection->rows : cells;
        int64_t before = w->halves ? waiting[at] : 0;
        float *hidden = memory, *cell = memory + out, *pending = cell + cells, *to = y + before * out;
        if (steps) omni_lstm(w->input, w->recurrent, w->projection, w->bias, steps, x, hidden, cell,
                             to, gates, work);
        if (w->gain) omni_norm(steps, out, to, w->gain, w->shift, to);
        memory = w->halves ? pending + out : pending;
        if (w->halves) {
            if (before) memcpy(y, pending, (size_t)(out * size));
            steps += before;
            if (final && steps % 2) memset(y + steps++ * out, 0, (size_t)(out * size));
            waiting[at] = steps % 2;
            if (waiting[at]) memcpy(pending, y + (steps - 1) * out, (size_t)(out * size));
            steps /= 2;
        }
        memcpy(x, y, (size_t)(steps * (w->halves ? 2 : 1) * out * size));
    }
    return steps;
}

/* ---- log-mel filterbanks ---- */

#if defined(__x86_64__)
__attribute__((target("avx2,fma,f16c"))) static void fbank_avx2(const filterbank *f,
                                                                 int64_t left,
                                                                 const float *samples, v8 *work,
                                                                 float *out) {
    fbank_any_avx2(f, left, samples, work, out);
}
#endif

/* [count, bins] of frames that start every `shift` samples; work: 48 half floats, at 32 bytes. */
void omni_fbank(int64_t level, const filterbank *f, int64_t count, const float *samples, float *work,
                float *out) {
    int64_t at;
    for (at = 0; at < count; at += 8) {
        const float *from = samples + at * f->shift;
        float *to = out + at * f->bins;
#if defined(__x86_64__)
        if (level != PLAIN)
            fbank_avx2(f, count - at, from, (v8 *)work, to);
        else
#endif
            fbank_any(f, count - at, from, (v8 *)work, to);
    }
    (void)level;
}

/* ---- greedy search of a transducer ---- */

typedef struct {
    const layer *layers; /* of the predictor; without any it sees the last two tokens only */
    const matrix *context;
    const float *context_bias;
    const void *table; /* embedding [V, width], of `type` */
    const float *table_scale;
    const matrix *projection, *output; /* predictor to joiner [J, .], joiner to vocabulary [V, J] */
    const float *output_bias;
    int64_t count, type, width, relu, most; /* layers; most tokens of a frame */
} transducer;

static int64_t inputs_of(const matrix *w) { return w->first ? w->first->columns : w->columns; }

static void embed(const transducer *t, int64_t token, float *x) {
    float scale = t->table_scale ? t->table_scale[token] : 1.0f;
    int64_t i, at = token * t->width;
    for (i = 0; i < t->width; i++, at++)
        x[i] = t->type == F32    ? one_f32((const float *)t->table + at)
               : t->type == F16  ? one_f16((const uint16_t *)t->table + at)
               : t->type == BF16 ? one_bf16((const uint16_t *)t->table + at)
                                 : scale * one_i8((const int8_t *)t->table + at);
}

/* The predictor after one more token; state [hidden, cell] of each layer or the last two tokens. */
static void predict(const transducer *t, int64_t token, float *state, int64_t *context,
                    float *predicted, float *x, float *y, float *gates, float *work) {
    int64_t at, i, out = inputs_of(t->projection);
    if (t->count) embed(t, token, x);
    for (at = 0; at < t->count; at++) {
        const layer *w = t->layers + at;
        int64_t cells = w->input->rows / 4;
        omni_lstm(w->input, w->recurrent, w->projection, w->bias, 1, x, state, state + out, y, gates,
                  work);
        state += out + cells;
        if (w->gain) omni_norm(1, out, y, w->gain, w->shift, y);
        memcpy(x, y, sizeof(float) * (size_t)out);
    }
    if (!t->count) {
        context[0] = context[1], context[1] = token;
        embed(t, context[0], x), embed(t, context[1], x + t->width);
        memcpy(y, t->context_bias, sizeof(float) * (size_t)out);
        omni_product(t->context, x, y);
        for (i = 0; i < out; i++) x[i] = y[i] > 0.0f || y[i] != y[i] ? y[i] : 0.0f;
    }
    memset(predicted, 0, sizeof(float) * (size_t)t->projection->rows);
    omni_product(t->projection, x, predicted);
}

/* Natural log of the probability of one of `count` logits, which are followed by room for eight. */
INLINE float log_share(int64_t count, float *logits, int64_t token) {
    float most = logits[token]; /* it is the largest one */
    v8 sum = splat(0.0f);
    int64_t at;
    for (at = count; at < count + 8; at++) logits[at] = -__builtin_inff();
    for (at = 0; at < count; at += 8) {
        v8 x = get8(logits + at) - splat(most);
        sum += choose(x > splat(-87.0f), exp8(x), splat(0.0f));
    }
    return -log8(splat(sum8(sum)))[0];
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma,f16c"))) static void join_avx2(int64_t count, const float *a,
                                                                const float *b, int64_t relu,
                                                                float *to) {
    join_any_avx2(count, a, b, relu, to);
}
#endif

/* The most probable token at every turn, over `frames` projected frames [frames, J].
 *
 * `at`: the frame to go on with, and the tokens it has given; updated. state and context as of
 * `predict`; predicted [J] what the predictor says now; tokens, times and logs have `room`, and where
 * it is full the search returns before the last frame. Token 0 is blank, 1 is never taken. work: J
 * + V + 16 + 9 wide floats, where `wide` is the largest of cells, outputs and embedding.
 * Returns how many tokens, or -1 where scores are no numbers.
 */
int64_t omni_greedy(const transducer *t, int64_t frames, const float *projected, int64_t *at,
                    float *state, int64_t *context, float *predicted, int64_t room, int64_t wide,
                    int64_t *tokens, int64_t *times, float *logs, float *work) {
    int64_t joined = inputs_of(t->output), vocabulary = t->output->rows, found = 0, i;
    float *join = work, *logits = join + joined + 8, *x = logits + vocabulary + 8, *y = x + 2 * wide;
    while (at[0] < frames && found < room) {
        const float *frame = projected + at[0] * joined;
        int64_t best = 0;
#if defined(__x86_64__)
        if (t->output->level != PLAIN)
            join_avx2(joined, frame, predicted, t->relu, join);
        else
#endif
            join_any(joined, frame, predicted, t->relu, join);
        memcpy(logits, t->output_bias, sizeof(float) * (size_t)vocabulary);
        omni_product(t->output, join, logits);
        if (vocabulary > 1) logits[1] = -__builtin_inff();
        for (i = 0; i < vocabulary; i++) {
            if (!(logits[i] < __builtin_inff())) return -1;
            if (logits[i] > logits[best]) best = i;
        }
        if (best == 0) {
            at[0]++, at[1] = 0;
            continue;
        }
        tokens[found] = best, times[found] = at[0], logs[found++] = log_share(vocabulary, logits, best);
        predict(t, best, state, context, predicted, x, y, y + 2 * wide, y + 6 * wide);
        if (++at[1] >= t->most) at[0]++, at[1] = 0;
    }
    return found;
}

/* Columns of the set bits of [rows, ceil(columns / 8)]; offsets [rows + 1]. */
void omni_columns(int64_t rows, int64_t columns, const uint8_t *bits, int32_t *offsets,
                  uint16_t *indices) {
    int64_t bytes = (columns + 7) / 8, row, byte, found = 0;
    for (row = 0; row < rows; row++) {
        offsets[row] = (int32_t)found;
        for (byte = 0; byte < bytes; byte++) {
            unsigned set = bits[row * bytes + byte];
            for (; set; set &= set - 1) indices[found++] = (uint16_t)(byte * 8 + __builtin_ctz(set));
        }
    }
    offsets[rows] = (int32_t)found;
}

/* Panels of `width` columns of set bits and their values of `item` bytes, row by row. */
void omni_panels(int64_t rows, int64_t columns, int64_t width, int64_t item, const uint8_t *bits,
                 const char *values, int32_t *offsets, uint8_t *counts, uint8_t *places,
                 char *packed) {
    int64_t bytes = (columns + 7) / 8, panels = (columns + width - 1) / width, step = width / 8;
    int64_t row, panel, r, byte, found = 0, read = 0, at[4];
    for (row = 0; row < rows; row += 4) {
        offsets[row / 4] = (int32_t)found;
        for (r = 0; r < 4; r++) {
            at[r] = read;
            for (byte = 0; byte < bytes && row + r < rows; byte++)
                read += __builtin_popcount(bits[(row + r) * bytes + byte]);
        }
        for (panel = 0; panel < panels; panel++)
            for (r = 0; r < 4; r++) {
                int64_t start = found, end = (panel + 1) * step < bytes ? (panel + 1) * step : bytes;
                for (byte = panel * step; byte < end && row + r < rows; byte++) {
                    unsigned set = bits[(row + r) * bytes + byte];
                    for (; set; set &= set - 1)
                        places[found++] = (uint8_t)((byte - panel * step) * 8 + __builtin_ctz(set));
                }
                *counts++ = (uint8_t)(found - start);
                memcpy(packed + start * item, values + at[r] * item, (size_t)((found - start) * item));
                at[r] += found - start;
            }
    }
    offsets[(rows + 3) / 4] = (int32_t)found;
}

/* Sixteen rows as visits of `most` values a row; returns how many. Where `blocks` is not null, the
 * visits are written there, their places and values of `item` bytes behind it. */
static int64_t visit(int64_t lanes, const int32_t *rows, const uint16_t *columns, int64_t most,
                     uint16_t *blocks, uint8_t *places, const char *values, int64_t item,
                     char *packed) {
    int32_t at[16];
    int64_t visits, lane, k;
    memcpy(at, rows, sizeof(int32_t) * (size_t)lanes);
    for (visits = 0;; visits++) {
        int32_t block = INT32_MAX;
        for (lane = 0; lane < lanes; lane++)
            if (at[lane] < rows[lane + 1] && columns[at[lane]] / 16 < block)
                block = columns[at[lane]] / 16;
        if (block == INT32_MAX) return visits;
        if (blocks) {
            blocks[visits] = (uint16_t)block;
            memset(places + visits * most * 16, 0, (size_t)(most * 16));
            memset(packed + visits * most * 16 * item, 0, (size_t)(most * 16 * item));
        }
        for (lane = 0; lane < lanes; lane++)
            for (k = 0; k < most && at[lane] < rows[lane + 1]; k++) {
                int32_t column = columns[at[lane]];
                int64_t slot = (visits * most + k) * 16 + lane;
                if (column / 16 > block + 1) break;
                if (blocks) {
                    places[slot] = (uint8_t)(column % 32);
                    memcpy(packed + slot * item, values + at[lane] * item, (size_t)item);
                }
                at[lane]++;
            }
    }
}

/* Slices of rows with the given columns. Without `blocks` only the visits of each sixteen rows,
 * [rows / 16 + 1], and their values a row, [rows / 16]; then there is room for the rest. */
void omni_slices(int64_t rows, int64_t item, const int32_t *starts, const uint16_t *columns,
                 const char *values, int32_t *offsets, uint8_t *counts, uint16_t *blocks,
                 uint8_t *places, char *packed) {
    int64_t row, most, slots = 0, visits = 0;
    for (row = 0; row < rows; row += 16, counts++, offsets++) {
        int64_t lanes = rows - row < 16 ? rows - row : 16, found, best = 0;
        if (blocks) {
            most = *counts;
            found = visit(lanes, starts + row, columns, most, blocks + *offsets,
                          places + slots * 16, values, item, packed + slots * 16 * item);
            slots += found * most;
            continue;
        }
        *offsets = (int32_t)visits;
        for (most = 2; most <= 8; most += 2) { /* cycles: two a value, and four to begin */
            found = visit(lanes, starts + row, columns, most, 0, 0, 0, 0, 0);
            if (most == 2 || found * (2 * most + 4) < best) {
                best = found * (2 * most + 4);
                *counts = (uint8_t)most;
                offsets[1] = (int32_t)(visits + found);
            }
        }
        visits = offsets[1];
    }
    if (!rows) *offsets = 0;
}

#else /* OMNI_TYPE: compiled for each instruction set and type of value */

#define ONE NAME3(one, OMNI_TYPE, of)
#define one_f32_of one_f32
#define one_f16_of one_f16
#define one_bf16_of one_bf16
#define one_i8_of one_i8
#define some_f32_of some_f32
#define some_f16_of some_f16
#define some_bf16_of some_bf16
#define some_i8_of some_i8
#define VALUE_f32 float
#define VALUE_f16 uint16_t
#define VALUE_bf16 uint16_t
#define VALUE_i8 int8_t
#define VALUE NAME2(VALUE, OMNI_TYPE)

#define LOAD8 NAME(load8)
#if !defined(HAS_AVX2) && !defined(HAS_AVX512) && !defined(HAS_NEON)
INLINE v8 LOAD8(const VALUE *p) {
    return (v8){ONE(p),     ONE(p + 1), ONE(p + 2), ONE(p + 3),
                ONE(p + 4), ONE(p + 5), ONE(p + 6), ONE(p + 7)};
}
#endif

TARGET INLINE void NAME(add)(const matrix *w, int64_t row, int64_t count, v8 sum, float *y) {
    int64_t lane;
    for (lane = 0; lane < count; lane++)
        y[row + lane] += w->scale ? w->scale[row + lane] * sum[lane] : sum[lane];
}

/* Narrow values are asked for in time; of float32 the processor's own prefetch is faster. */
#define AHEAD 4096
TARGET INLINE void NAME(fetch)(const VALUE *values, int64_t count) {
    int64_t at;
    if (sizeof(VALUE) < 4)
        for (at = 0; at < count * (int64_t)sizeof(VALUE); at += 64)
            __builtin_prefetch((const char *)values + AHEAD + at);
}

/* Column `n` of four that are read at once: reads are what a block costs. */
#define COLUMN(four, n) (int64_t)(((four) >> (16 * (n))) & 0xffff)

/* A band of 8 rows at `values` with a stride of `height` values per block. */
TARGET INLINE v8 NAME(band)(int64_t blocks, int64_t height, const uint16_t *indices,
                            const VALUE *values, const float *x) {
    v8 a = splat(0.0f), b = a, c = a, d = a;
    int64_t i = 0, half;
    uint64_t four;
    for (; i + 8 <= blocks; i += 8) {
        NAME(fetch)(values + i * height, 8 * height);
#pragma GCC unroll 2
        for (half = i; half < i + 8; half += 4) {
            const VALUE *v = values + half * height;
            memcpy(&four, indices + half, 8);
            a += LOAD8(v) * x[COLUMN(four, 0)];
            b += LOAD8(v + height) * x[COLUMN(four, 1)];
            c += LOAD8(v + 2 * height) * x[COLUMN(four, 2)];
            d += LOAD8(v + 3 * height) * x[COLUMN(four, 3)];
        }
    }
    for (; i < blocks; i++) a += LOAD8(values + i * height) * x[indices[i]];
    return (a + b) + (c + d);
}

/* The same of all columns. */
TARGET INLINE v8 NAME(whole)(int64_t columns, int64_t height, const VALUE *values, const float *x) {
    v8 a = splat(0.0f), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 <= columns; i += 4) {
        const VALUE *v = values + i * height;
        a += LOAD8(v) * x[i];
        b += LOAD8(v + height) * x[i + 1];
        c += LOAD8(v + 2 * height) * x[i + 2];
        d += LOAD8(v + 3 * height) * x[i + 3];
    }
    for (; i < columns; i++) a += LOAD8(values + i * height) * x[i];
    return (a + b) + (c + d);
}

#ifdef HAS_AVX512
/* A band of 16 rows. */
TARGET INLINE v16 NAME(band16)(int64_t blocks, const uint16_t *indices, const VALUE *values,
                               const float *x) {
    v16 a = {0}, b = a, c = a, d = a;
    int64_t i = 0;
    uint64_t four = 0;
#define SIXTEEN(p) ((v16)NAME3(some, OMNI_TYPE, of)(0xffff, p))
    for (; i + 4 <= blocks; i += 4) {
        const VALUE *v = values + i * 16;
        if (indices) {
            NAME(fetch)(v, 64);
            memcpy(&four, indices + i, 8);
        }
        a += SIXTEEN(v) * x[indices ? COLUMN(four, 0) : i];
        b += SIXTEEN(v + 16) * x[indices ? COLUMN(four, 1) : i + 1];
        c += SIXTEEN(v + 32) * x[indices ? COLUMN(four, 2) : i + 2];
        d += SIXTEEN(v + 48) * x[indices ? COLUMN(four, 3) : i + 3];
    }
    for (; i < blocks; i++) a += SIXTEEN(values + i * 16) * x[indices ? indices[i] : i];
#undef SIXTEEN
    return (a + b) + (c + d);
}
#endif

TARGET static void NAME(block)(const matrix *w, const float *x, float *y, int64_t count) {
    int64_t height = w->height, bands = (w->rows + height - 1) / height, band, half;
    (void)count;
    for (band = 0; band < bands; band++) {
        int64_t start = w->offsets[band], blocks = w->offsets[band + 1] - start;
        const VALUE *values = (const VALUE *)w->values + start * height;
        const uint16_t *indices = w->indices ? w->indices + start : 0;
#ifdef HAS_AVX512
        if (height == 16) {
            int64_t row = band * 16, lane;
            v16 sum = indices ? NAME(band16)(blocks, indices, values, x)
                              : NAME(band16)(blocks, 0, values, x);
            for (lane = 0; lane < 16 && row + lane < w->rows; lane++)
                y[row + lane] += w->scale ? w->scale[row + lane] * sum[lane] : sum[lane];
            continue;
        }
#endif
        for (half = 0; half < height; half += 8) {
            int64_t row = band * height + half, left = w->rows - row;
            const VALUE *v = values + half;
            v8 sum;
            if (left <= 0) break;
            if (!indices)
                sum = NAME(whole)(blocks, height, v, x);
            else if (height == 8)
                sum = NAME(band)(blocks, 8, indices, v, x);
            else
                sum = NAME(band)(blocks, 16, indices, v, x);
            NAME(add)(w, row, left < 8 ? left : 8, sum, y);
        }
    }
}

/* A tile: x [columns, LANES], y [rows, LANES], of which `count` lanes are used. */
TARGET static void NAME(blocks)(const matrix *w, const float *x, float *y, int64_t count) {
    int64_t height = w->height, bands = (w->rows + height - 1) / height, band, i, r, half, part;
    for (band = 0; band < bands; band++) {
        int64_t start = w->offsets[band], blocks = w->offsets[band + 1] - start;
        const uint16_t *indices = w->indices ? w->indices + start : 0;
        for (half = 0; half < height; half += 8) {
            const VALUE *values = (const VALUE *)w->values + start * height + half;
            int64_t row = band * height + half;
            for (part = 0; part < count && row < w->rows; part += 8) {
                v8 sum[8];
                for (r = 0; r < 8; r++) sum[r] = splat(0.0f);
                for (i = 0; i < blocks; i++) {
                    v8 v = LOAD8(values + i * height);
                    const float *in = x + (indices ? indices[i] : i) * LANES + part;
                    for (r = 0; r < 8; r++) sum[r] += v * in[r]; /* r: a vector */
                }
                for (r = 0; r < 8; r++) {
                    int64_t lane, left = w->rows - row < 8 ? w->rows - row : 8;
                    for (lane = 0; lane < left; lane++) {
                        float scale = w->scale ? w->scale[row + lane] : 1.0f;
                        y[(row + lane) * LANES + part + r] += scale * sum[r][lane];
                    }
                }
            }
        }
    }
}

TARGET static void NAME(csr)(const matrix *w, const float *x, float *y, int64_t count) {
    int64_t row, i;
    (void)count;
    for (row = 0; row < w->rows; row++) {
        int64_t end = w->offsets[row + 1];
        const VALUE *values = (const VALUE *)w->values;
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        i = w->offsets[row];
#if defined(HAS_AVX2) || defined(HAS_AVX512)
        {
            v8 s = splat(0.0f), t = s;
            for (; i + 16 <= end; i += 16) {
                __m256i p = _mm256_cvtepu16_epi32(_mm_loadu_si128((void *)(w->indices + i)));
                __m256i q = _mm256_cvtepu16_epi32(_mm_loadu_si128((void *)(w->indices + i + 8)));
                s += LOAD8(values + i) * (v8)_mm256_i32gather_ps(x, p, 4);
                t += LOAD8(values + i + 8) * (v8)_mm256_i32gather_ps(x, q, 4);
            }
            a = sum8(s + t);
        }
#endif
        for (; i + 4 <= end; i += 4) {
            a += ONE(values + i) * x[w->indices[i]];
            b += ONE(values + i + 1) * x[w->indices[i + 1]];
            c += ONE(values + i + 2) * x[w->indices[i + 2]];
            d += ONE(values + i + 3) * x[w->indices[i + 3]];
        }
        for (; i < end; i++) a += ONE(values + i) * x[w->indices[i]];
        a = (a + b) + (c + d);
        y[row] += w->scale ? w->scale[row] * a : a;
    }
}

TARGET static void NAME(csrs)(const matrix *w, const float *x, float *y, int64_t count) {
    int64_t row, i;
    (void)count;
    for (row = 0; row < w->rows; row++) {
        v16 sum = {0};
        for (i = w->offsets[row]; i < w->offsets[row + 1]; i++)
            sum += ONE((const VALUE *)w->values + i) * get16(x + w->indices[i] * LANES);
        if (w->scale) sum *= w->scale[row];
        sum += get16(y + row * LANES);
        memcpy(y + row * LANES, &sum, 64);
    }
}

#ifdef HAS_AVX512
/* The values of one row in a panel, from `at` on, times what x holds there. */
#define LOOKUP(left_, sum)                                                                         \
    do {                                                                                           \
        int32_t left = (left_);                                                                    \
        do {                                                                                       \
            __mmask16 mask = (__mmask16)_bzhi_u32(0xffff, (uint32_t)left);                         \
            __m512i place = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)places));           \
            __m512 in = width == 16 ? _mm512_permutexvar_ps(place, x0)                             \
                                    : _mm512_permutex2var_ps(x0, place, x1);                       \
            int64_t taken = left < 16 ? left : 16;                                                 \
            if (width == 64)                                                                       \
                in = _mm512_mask_mov_ps(in, _mm512_test_epi32_mask(place, high),                   \
                                        _mm512_permutex2var_ps(x2, place, x3));                    \
            sum = _mm512_fmadd_ps(NAME3(some, OMNI_TYPE, of)(mask, values), in, sum);              \
            values += taken, places += taken;                                                      \
            left -= 16;                                                                            \
        } while (__builtin_expect(left > 0, 0));                                                   \
    } while (0)

TARGET INLINE __m512 NAME(part)(const float *x, int64_t left) {
    return _mm512_maskz_loadu_ps(left > 0 ? (__mmask16)_bzhi_u32(0xffff, (uint32_t)left) : 0, x);
}

TARGET INLINE void NAME(panels_of)(const matrix *w, const float *x, float *y, const int width) {
    int64_t whole = w->columns / width, panels = (w->columns + width - 1) / width, row, panel, r;
    const uint8_t *places = w->places, *counts = w->counts;
    const VALUE *values = (const VALUE *)w->values;
    const __m512i high = _mm512_set1_epi32(32);
    for (row = 0; row < w->rows; row += 4) {
        __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, x0, x1 = s0, x2 = s0, x3 = s0;
        float sums[4];
        for (panel = 0; panel < panels; panel++, counts += 4) {
            const float *in = x + panel * width;
            if (panel < whole) {
                x0 = _mm512_loadu_ps(in);
                if (width > 16) x1 = _mm512_loadu_ps(in + 16);
                if (width > 32) x2 = _mm512_loadu_ps(in + 32), x3 = _mm512_loadu_ps(in + 48);
            } else {
                int64_t left = w->columns - panel * width;
                x0 = NAME(part)(in, left);
                if (width > 16) x1 = NAME(part)(in + 16, left - 16);
                if (width > 32) x2 = NAME(part)(in + 32, left - 32);
                if (width > 32) x3 = NAME(part)(in + 48, left - 48);
            }
            LOOKUP(counts[0], s0);
            LOOKUP(counts[1], s1);
            LOOKUP(counts[2], s2);
            LOOKUP(counts[3], s3);
        }
        sums[0] = _mm512_reduce_add_ps(s0), sums[1] = _mm512_reduce_add_ps(s1);
        sums[2] = _mm512_reduce_add_ps(s2), sums[3] = _mm512_reduce_add_ps(s3);
        for (r = 0; r < 4 && row + r < w->rows; r++)
            y[row + r] += w->scale ? w->scale[row + r] * sums[r] : sums[r];
    }
}
#undef LOOKUP

TARGET static void NAME(panel)(const matrix *w, const float *x, float *y, int64_t count) {
    (void)count;
    if (w->height == 16)
        NAME(panels_of)(w, x, y, 16);
    else if (w->height == 32)
        NAME(panels_of)(w, x, y, 32);
    else
        NAME(panels_of)(w, x, y, 64);
}

TARGET static void NAME(panels)(const matrix *w, const float *x, float *y, int64_t count) {
    int64_t panels = (w->columns + w->height - 1) / w->height, row, panel, i = 0, end, r;
    const uint8_t *counts = w->counts;
    (void)count;
    for (row = 0; row < w->rows; row += 4) {
        v16 sum[4] = {{0}};
        for (panel = 0; panel < panels; panel++) {
            const float *in = x + panel * w->height * LANES;
#pragma GCC unroll 4
            for (r = 0; r < 4; r++)
                for (end = i + *counts++; i < end; i++)
                    sum[r] += ONE((const VALUE *)w->values + i) * get16(in + w->places[i] * LANES);
        }
        for (r = 0; r < 4 && row + r < w->rows; r++) {
            v16 total = sum[r];
            if (w->scale) total *= w->scale[row + r];
            total += get16(y + (row + r) * LANES);
            memcpy(y + (row + r) * LANES, &total, 64);
        }
    }
}

/* Slices times `vectors` vectors of x [vectors, columns], y [vectors, rows]. A visit's columns lie in
 * two registers of each vector, the even block and the odd one. */
TARGET INLINE void NAME(slices_of)(const matrix *w, const float *x, float *y, const int vectors) {
    int64_t rows = w->rows, columns = w->columns, row, visit = 0, k;
    const uint8_t *places = w->places;
    const VALUE *values = (const VALUE *)w->values;
    int n;
    for (row = 0; row < rows; row += 16) {
        int64_t end = w->offsets[row / 16 + 1], most = w->counts[row / 16];
        __m512 sum[8], odd_sum = _mm512_setzero_ps(), even[8], odd[8];
        __mmask16 left = (__mmask16)_bzhi_u32(0xffff, rows - row < 16 ? (uint32_t)(rows - row) : 16);
#pragma GCC unroll 8
        for (n = 0; n < vectors; n++) sum[n] = _mm512_setzero_ps();
        for (; visit < end; visit++) {
            int64_t a = (w->indices[visit] + 1) / 2 * 32, b = w->indices[visit] / 2 * 32 + 16;
            if (a + 16 <= columns && b + 16 <= columns)
#pragma GCC unroll 8
                for (n = 0; n < vectors; n++) {
                    even[n] = _mm512_loadu_ps(x + n * columns + a);
                    odd[n] = _mm512_loadu_ps(x + n * columns + b);
                }
            else
#pragma GCC unroll 8
                for (n = 0; n < vectors; n++) {
                    even[n] = NAME(part)(x + n * columns + a, columns - a);
                    odd[n] = NAME(part)(x + n * columns + b, columns - b);
                }
            for (k = 0; k < most; k += 2, values += 32, places += 32) {
                __m512i p = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)places));
                __m512i q = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(places + 16)));
                __m512 v = NAME3(some, OMNI_TYPE, of)(0xffff, values);
                __m512 u = NAME3(some, OMNI_TYPE, of)(0xffff, values + 16);
#pragma GCC unroll 8
                for (n = 0; n < vectors; n++) {
                    __m512 *other = vectors == 1 ? &odd_sum : sum + n;
                    sum[n] = _mm512_fmadd_ps(v, _mm512_permutex2var_ps(even[n], p, odd[n]), sum[n]);
                    *other = _mm512_fmadd_ps(u, _mm512_permutex2var_ps(even[n], q, odd[n]), *other);
                }
            }
        }
#pragma GCC unroll 8
        for (n = 0; n < vectors; n++) {
            float *to = y + n * rows + row;
            __m512 total = vectors == 1 ? _mm512_add_ps(sum[n], odd_sum) : sum[n];
            if (w->scale) total = _mm512_mul_ps(total, _mm512_maskz_loadu_ps(left, w->scale + row));
            total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(left, to));
            _mm512_mask_storeu_ps(to, left, total);
        }
    }
}

TARGET static void NAME(slice)(const matrix *w, const float *x, float *y, int64_t count) {
    (void)count;
    NAME(slices_of)(w, x, y, 1);
}

TARGET static void NAME(slices)(const matrix *w, const float *x, float *y, int64_t count) {
    int64_t rows = w->rows, columns = w->columns, n = 0;
    for (; n + 8 <= count; n += 8) NAME(slices_of)(w, x + n * columns, y + n * rows, 8);
    if (count - n >= 4) NAME(slices_of)(w, x + n * columns, y + n * rows, 4), n += 4;
    if (count - n >= 2) NAME(slices_of)(w, x + n * columns, y + n * rows, 2), n += 2;
    if (count - n) NAME(slices_of)(w, x + n * columns, y + n * rows, 1);
}
#endif

#undef OMNI_TYPE
#undef ONE
#undef AHEAD
#undef COLUMN
#undef LOAD8
#undef VALUE
#undef one_f32_of
#undef one_f16_of
#undef one_bf16_of
#undef one_i8_of
#undef some_f32_of
#undef some_f16_of
#undef some_bf16_of
#undef some_i8_of
#undef VALUE_f32
#undef VALUE_f16
#undef VALUE_bf16
#undef VALUE_i8
#endif
