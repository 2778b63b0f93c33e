/* Every kernel of this processor against sums in double, on random shapes; arrays end where the
 * kernels may read last, so that a sanitizer sees more. Exits with 1 at the first difference. */
#include "sparse_kernels.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t seed = 1;
static uint32_t draw(uint32_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}
static float number(void) { return ((float)draw(2001) - 1000.0f) / 1000.0f; }

/* Sixteenths from -127/16 to 127/16: exact in every type. */
static void store(int type, void *values, int64_t at, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (type == F32) ((float *)values)[at] = value;
    if (type == BF16) ((uint16_t *)values)[at] = (uint16_t)(bits >> 16);
    if (type == I8) ((int8_t *)values)[at] = (int8_t)(value * 16.0f);
    if (type == F16)
        ((uint16_t *)values)[at] =
            value == 0.0f ? 0
                          : (uint16_t)(((bits >> 16) & 0x8000u) |
                                       (((bits >> 13) & 0x3ffffu) - (112u << 10)));
}

static void fail(const matrix *w, const char *what, double found, double expected) {
    printf("%s: level %d kind %d type %d height %d, %d x %d: %g, expected %g\n", what, w->level,
           w->kind, w->type, w->height, w->rows, w->columns, found, expected);
    exit(1);
}

static void check(const matrix *w, const float *dense) {
    int64_t count, n, r, c, rows = w->rows, columns = w->columns;
    for (count = 1; count <= 19; count += 6) {
        float *x = malloc(sizeof(float) * (size_t)(count * columns));
        float *y = malloc(sizeof(float) * (size_t)(count * rows));
        float *work = malloc(sizeof(float) * (size_t)(LANES * (rows + columns)));
        for (n = 0; n < count * columns; n++) x[n] = number();
        for (n = 0; n < count * rows; n++) y[n] = 1.0f;
        if (count == 1)
            omni_product(w, x, y);
        else
            omni_products(w, count, x, y, work);
        for (n = 0; n < count; n++)
            for (r = 0; r < rows; r++) {
                double sum = 1.0, size = 1.0;
                for (c = 0; c < columns; c++) {
                    double term = (double)dense[r * columns + c] * x[n * columns + c];
                    sum += term, size += fabs(term);
                }
                if (!(fabs(y[n * rows + r] - sum) <= 1e-6 * size))
                    fail(w, count == 1 ? "product" : "products", y[n * rows + r], sum);
            }
        free(x), free(y), free(work);
    }
}

static const size_t items[] = {4, 2, 2, 1};

static void check_shape(int level, int type, int kind, int height) {
    int32_t rows = 1 + (int32_t)draw(40), columns = 1 + (int32_t)draw(150), r, c, i;
    int32_t high = kind == BLOCK ? height : 1, bands = (rows + high - 1) / high;
    uint32_t keep = draw(5) * draw(30);
    int whole = kind == BLOCK && draw(4) == 0;
    int64_t bytes = (columns + 7) / 8, kept = 0;
    float *dense = calloc((size_t)(rows * columns), sizeof(float));
    float *scale = malloc(sizeof(float) * (size_t)rows);
    uint8_t *bits = calloc((size_t)(bands * bytes), 1);
    size_t room = (size_t)(bands * high * columns) * items[type] + 64;
    void *values = calloc(room, 1), *packed = calloc(room, 1);
    int32_t *offsets = malloc(sizeof(int32_t) * (size_t)(rows + 2));
    uint16_t *indices = calloc((size_t)(rows * columns) * 2 + 64, 1);
    uint8_t *places = calloc((size_t)(rows * columns) + 64, 1);
    int32_t panels = kind == PANEL ? (columns + height - 1) / height : 0, visits[5];
    uint8_t *counts = malloc((size_t)((rows + 3) / 4 * (panels * 4 + 1)));
    uint16_t *blocks = 0;
    matrix w = {rows, columns, kind, type, height, level, offsets, whole ? 0 : indices,
                counts, places, values, type == I8 ? scale : 0, 0};
    for (r = 0; r < bands; r++)
        for (c = 0; c < columns; c++)
            if (whole || draw(100) < keep) {
                bits[r * bytes + c / 8] |= (uint8_t)(1u << (c % 8));
                for (i = 0; i < high; i++) {
                    float value = (float)(1 + (int)draw(127)) / (draw(2) ? 16.0f : -16.0f);
                    if (r * high + i < rows) dense[(r * high + i) * columns + c] = value;
                    store(type, values, kept++, r * high + i < rows ? value : 0.0f);
                }
            }
    for (r = 0; r < rows; r++) scale[r] = 1.0f / 16.0f;
    if (kind == PANEL) {
        omni_panels(rows, columns, height, (int64_t)items[type], bits, values, offsets, counts,
                    places, packed);
        w.values = packed;
    } else {
        omni_columns(bands, columns, bits, offsets, indices);
    }
    if (kind == SLICE) { /* offsets and indices become those of slices */
        int64_t slots = 0, group;
        omni_slices(rows, (int64_t)items[type], offsets, indices, values, visits, counts, 0, 0, 0);
        for (group = 0; group < (rows + 15) / 16; group++)
            slots += 16 * counts[group] * (visits[group + 1] - visits[group]);
        blocks = malloc(sizeof(uint16_t) * (size_t)visits[group] + 1);
        free(places), free(packed);
        places = malloc((size_t)slots + 1), packed = malloc((size_t)slots * items[type] + 1);
        omni_slices(rows, (int64_t)items[type], offsets, indices, values, visits, counts, blocks,
                    places, packed);
        w.values = packed, w.places = places, w.offsets = visits, w.indices = blocks;
    }
    check(&w, dense);
    free(blocks);
    free(dense), free(scale), free(bits), free(values), free(packed), free(offsets);
    free(indices), free(places), free(counts);
}

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

static void check_gates(int level) {
    enum { CELLS = 21, ROWS = 3 };
    float gates[ROWS * 4 * CELLS], cell[ROWS * CELLS], before[ROWS * CELLS], out[ROWS * CELLS];
    int i, n;
    for (i = 0; i < ROWS * 4 * CELLS; i++) gates[i] = number() * (draw(9) ? 8.0f : 300.0f);
    for (i = 0; i < ROWS * CELLS; i++) before[i] = cell[i] = 3.0f * number();
    omni_gates(level, ROWS, CELLS, gates, cell, out);
    for (n = 0; n < ROWS; n++)
        for (i = 0; i < CELLS; i++) {
            const float *g = gates + n * 4 * CELLS + i;
            double c = sigmoid(g[CELLS]) * before[n * CELLS + i] + sigmoid(g[0]) * tanh(g[2 * CELLS]);
            double o = sigmoid(g[3 * CELLS]) * tanh(c);
            if (!(fabs(c - cell[n * CELLS + i]) < 2e-6) || !(fabs(o - out[n * CELLS + i]) < 2e-6)) {
                printf("gates: level %d: %g %g, expected %g %g\n", level, cell[n * CELLS + i],
                       out[n * CELLS + i], c, o);
                exit(1);
            }
        }
}

/* Frames against a transform in double. */
static void check_fbank(int level) {
    enum { HALF = 32, LENGTH = 50, SHIFT = 20, BINS = 5, MOST = 19 };
    int32_t first[BINS], last[BINS];
    int i, k, n, t, frames = 1 + (int)draw(MOST), size = SHIFT * (frames - 1) + LENGTH;
    float window[LENGTH], turns[2 * HALF], filters[BINS * HALF];
    float *samples = malloc(sizeof(float) * (size_t)size);
    float *out = malloc(sizeof(float) * (size_t)(frames * BINS));
    float *work = aligned_alloc(64, sizeof(float) * 48 * HALF);
    filterbank f = {SHIFT, LENGTH, HALF, BINS, window, turns, first, last, filters};
    for (i = 0; i < size; i++) samples[i] = number();
    for (i = 0; i < LENGTH; i++) window[i] = 0.5f + 0.5f * number();
    for (k = 0; k < HALF; k++) {
        turns[2 * k] = (float)cos(M_PI * k / HALF);
        turns[2 * k + 1] = (float)-sin(M_PI * k / HALF);
    }
    for (i = n = 0; i < BINS; i++) {
        first[i] = (int32_t)draw(HALF), last[i] = first[i] + (int32_t)draw((uint32_t)(HALF - first[i]) + 1);
        for (k = first[i]; k < last[i]; k++) filters[n++] = 1.0f + number();
    }
    omni_fbank(level, &f, frames, samples, work, out);
    for (n = 0; n < frames; n++) {
        double power[HALF], mean = 0.0, sum;
        const float *x = samples + n * SHIFT, *filter = filters;
        for (t = 0; t < LENGTH; t++) mean += x[t] / (double)LENGTH;
        for (k = 0; k < HALF; k++) {
            double re = 0.0, im = 0.0;
            for (t = 0; t < LENGTH; t++) {
                double v = (x[t] - mean - 0.97 * (x[t ? t - 1 : 0] - mean)) * window[t];
                re += v * cos(M_PI * k * t / HALF), im -= v * sin(M_PI * k * t / HALF);
            }
            power[k] = re * re + im * im;
        }
        for (i = 0; i < BINS; i++) {
            for (sum = 0.0, k = first[i]; k < last[i]; k++) sum += power[k] * *filter++;
            sum = log(sum > 1.1920929e-7 ? sum : 1.1920929e-7);
            if (!(fabs(out[n * BINS + i] - sum) < 2e-3)) {
                printf("fbank: level %d: %g, expected %g\n", level, out[n * BINS + i], sum);
                exit(1);
            }
        }
    }
    free(samples), free(out), free(work);
}

/* Chunks of any length give the frames of all at once. */
static void check_encoder(int level) {
    enum { CELLS = 6, WIDE = 4, LAYERS = 3, MOST = 17, ROOM = (MOST + 1) * 2 * CELLS };
    enum { WEIGHTS = 4 * 8 * 2 * CELLS }; /* 24 rows fill three bands of eight */
    int32_t at, i;
    float *weights[2 * LAYERS], bias[4 * CELLS] = {0}, gain[CELLS], input[MOST * WIDE];
    matrix w[2 * LAYERS];
    layer layers[LAYERS];
    int steps = 1 + (int)draw(MOST), round, expected = 0;
    float whole[ROOM], pieces[ROOM];
    for (i = 0; i < CELLS; i++) gain[i] = 1.0f + 0.5f * number();
    for (i = 0; i < MOST * WIDE; i++) input[i] = number();
    for (at = 0; at < 2 * LAYERS; at++) {
        int32_t wide = at % 2 ? CELLS : at == 0 ? WIDE : 2 * CELLS;
        int32_t *offset = malloc(sizeof(int32_t) * 4);
        weights[at] = calloc(WEIGHTS + 16, sizeof(float));
        for (i = 0; i < 4 * CELLS * wide; i++) weights[at][i] = 0.3f * number();
        for (i = 0; i < 4; i++) offset[i] = i * wide;
        w[at] = (matrix){4 * CELLS, wide, BLOCK, F32, 8, level, offset, 0, 0, 0, weights[at], 0, 0};
    }
    for (at = 0; at < LAYERS; at++)
        layers[at] = (layer){w + 2 * at, w + 2 * at + 1, 0, bias, gain, bias, at < LAYERS - 1};
    for (round = 0; round < 2; round++) {
        float memory[LAYERS * 3 * CELLS] = {0}, *found = round ? pieces : whole;
        int64_t waiting[LAYERS] = {0}, from = 0, count = 0;
        while (from < steps || !from) {
            int64_t left = steps - from, take = round ? 1 + draw((uint32_t)left) : left, given;
            float *x = malloc(sizeof(float) * (size_t)((take + 1) * 2 * CELLS));
            float *y = malloc(sizeof(float) * (size_t)((take + 1) * 2 * CELLS));
            float *gates = malloc(sizeof(float) * (size_t)((take + 1) * 4 * CELLS));
            float *work = malloc(sizeof(float) * LANES * 6 * CELLS);
            memcpy(x, input + from * WIDE, sizeof(float) * (size_t)(take * WIDE));
            given = omni_encoder(layers, LAYERS, take, from + take == steps, x, y, memory, waiting,
                                 gates, work);
            memcpy(found + count * CELLS, x, sizeof(float) * (size_t)(given * CELLS));
            count += given, from += take;
            free(x), free(y), free(gates), free(work);
        }
        if (round == 0) expected = (int)count;
        if (count != (steps + 3) / 4 || count != expected) {
            printf("encoder: %d frames of %d\n", (int)count, steps);
            exit(1);
        }
    }
    for (i = 0; i < expected * CELLS; i++)
        if (!(fabs(whole[i] - pieces[i]) < 1e-4)) {
            printf("encoder: level %d: %g, expected %g\n", level, pieces[i], whole[i]);
            exit(1);
        }
    for (at = 0; at < 2 * LAYERS; at++) free(weights[at]), free((void *)w[at].offsets);
}

/* Tokens found one at a time are those found at once; arrays are no larger than they must be. */
static void check_greedy(int level) {
    enum { JOINED = 11, TOKENS = 9, WIDTH = 5, CELLS = 6, FRAMES = 13, MOST = 3, ALL = FRAMES * MOST };
    enum { WIDE = 6, WORK = JOINED + TOKENS + 16 + 9 * WIDE };
    int32_t shapes[5][2] = {{4 * CELLS, WIDTH}, {4 * CELLS, CELLS}, {CELLS, 2 * WIDTH},
                            {JOINED, CELLS}, {TOKENS, JOINED}};
    matrix w[5];
    float *weights[5], bias[4 * CELLS] = {0}, table[TOKENS * WIDTH], out[TOKENS], frames[FRAMES * JOINED];
    int stateless = (int)draw(2), round, at, i;
    for (at = 0; at < 5; at++) {
        int32_t rows = shapes[at][0], columns = shapes[at][1], bands = (rows + 7) / 8;
        int32_t *offset = malloc(sizeof(int32_t) * (size_t)(bands + 1));
        weights[at] = calloc((size_t)(bands * 8 * columns) + 16, sizeof(float));
        for (i = 0; i < bands * 8 * columns; i++) weights[at][i] = number();
        for (i = 0; i <= bands; i++) offset[i] = i * columns;
        w[at] = (matrix){rows, columns, BLOCK, F32, 8, level, offset, 0, 0, 0, weights[at], 0, 0};
    }
    for (i = 0; i < TOKENS * WIDTH; i++) table[i] = number();
    for (i = 0; i < TOKENS; i++) out[i] = number();
    for (i = 0; i < FRAMES * JOINED; i++) frames[i] = 2.0f * number();
    layer one = {w, w + 1, 0, bias, stateless ? 0 : bias + 1, bias, 0};
    transducer t = {&one, w + 2, bias, table, 0, w + 3, w + 4, out,
                    stateless ? 0 : 1, F32, WIDTH, (int64_t)draw(2), 1 + draw(MOST)};
    int64_t tokens[2][ALL], times[2][ALL], count[2] = {0, 0};
    for (round = 0; round < 2; round++) {
        int64_t place[2] = {0, 0}, context[2] = {0, 0}, room = round ? 1 : ALL, k;
        float *state = calloc(2 * CELLS, sizeof(float)), *predicted = calloc(JOINED, sizeof(float));
        while (place[0] < FRAMES) {
            int64_t *found = malloc(sizeof(int64_t) * (size_t)room);
            int64_t *when = malloc(sizeof(int64_t) * (size_t)room), given;
            float *logs = malloc(sizeof(float) * (size_t)room), *work = malloc(sizeof(float) * WORK);
            given = omni_greedy(&t, FRAMES, frames, place, state, context, predicted, room, WIDE, found,
                                when, logs, work);
            for (k = 0; k < given; k++) {
                if (!(logs[k] <= 1e-6f) || !(logs[k] > -log(TOKENS) - 1e-4)) {
                    printf("greedy: level %d: log probability %g\n", level, logs[k]);
                    exit(1);
                }
                tokens[round][count[round]] = found[k], times[round][count[round]++] = when[k];
            }
            free(found), free(when), free(logs), free(work);
        }
        free(state), free(predicted);
    }
    if (count[0] != count[1] || memcmp(tokens[0], tokens[1], sizeof(int64_t) * (size_t)count[0]) ||
        memcmp(times[0], times[1], sizeof(int64_t) * (size_t)count[0])) {
        printf("greedy: level %d: %d tokens, then %d\n", level, (int)count[0], (int)count[1]);
        exit(1);
    }
    for (at = 0; at < 5; at++) free(weights[at]), free((void *)w[at].offsets);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 20, best = omni_level(), level, type, round, checks = 0;
    for (level = 0; level <= best; level++) {
        if (best == NEON && level != PLAIN && level != NEON) continue;
        for (round = 0; round < rounds; round++) {
            check_gates(level);
            check_fbank(level);
            check_encoder(level);
            check_greedy(level);
            for (type = F32; type <= I8; type++, checks += 3) {
                check_shape(level, type, BLOCK, draw(2) ? 8 : 16);
                check_shape(level, type, CSR, 0);
                if (level == AVX512) check_shape(level, type, PANEL, 16 << draw(3));
                if (level == AVX512) check_shape(level, type, SLICE, 0);
            }
        }
    }
    printf("%d checks at levels up to %d\n", checks, best);
    return 0;
}
