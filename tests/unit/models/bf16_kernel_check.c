/* Every function of bf16_kernels.c against the same in double, on random shapes; arrays end where
 * they must, so that a sanitizer sees what is read beyond. Exits with 1 at the first difference. */
#include "bf16_kernels.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BLANK 0

static uint64_t seed = 1;
static int64_t draw(int64_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(seed >> 33) % below;
}
static float number(void) { return (float)(draw(2001) - 1000) / 1000.0f; }

static void *room(int64_t count, size_t item) { return malloc((size_t)count * item + !count); }
static float *floats(int64_t count, float size) {
    float *made = room(count, sizeof(float));
    for (int64_t i = 0; i < count; i++) made[i] = size * number();
    return made;
}
static uint16_t *halves(int64_t count, float size) {
    uint16_t *made = room(count, sizeof(uint16_t));
    for (int64_t i = 0; i < count; i++) made[i] = narrow(size * number());
    return made;
}

static void same(const char *what, double found, double expected, double tolerance) {
    if (fabs(found - expected) <= tolerance * (1.0 + fabs(expected))) return;
    printf("%s: %g, expected %g\n", what, found, expected);
    exit(1);
}
static const double HALF = 1.0 / 128; /* of a bfloat16, relative */

static double logistic(double x) { return 1.0 / (1.0 + exp(-x)); }

/* One frame after the other, forward and back, as the functions for a frame compute it. */
static void check_frame(void) {
    int64_t rows = 1 + draw(5), cells = 1 + draw(70), all = rows * cells;
    uint16_t *sums = halves(4 * all, 4.0f), *output = room(all, 2), *grad = halves(all, 1.0f);
    uint16_t *sums_grad = room(4 * all, 2), *again = room(all, 2);
    float *before = floats(all, 2.0f), *after = room(all, 4), *reach = floats(all, 1.0f);
    float *cell_grad = room(all, 4);
    memcpy(cell_grad, reach, sizeof(float) * (size_t)all);
    omni_lstm_forward(rows, cells, sums, before, after, output);
    omni_lstm_backward(rows, cells, sums, before, after, grad, cell_grad, sums_grad, again);
    for (int64_t at = 0; at < all; at++) {
        const uint16_t *sum = sums + at / cells * 4 * cells + at % cells;
        const uint16_t *found = sums_grad + at / cells * 4 * cells + at % cells;
        double i = logistic(wide(sum[0])), f = logistic(wide(sum[cells]));
        double g = tanh(wide(sum[2 * cells])), o = logistic(wide(sum[3 * cells]));
        double cell = f * before[at] + i * g, level = tanh(cell), come = wide(grad[at]);
        double reached = reach[at] + come * o * (1.0 - level * level);
        same("cell", after[at], cell, 1e-5);
        same("output", wide(output[at]), o * level, HALF);
        same("output again", wide(again[at]), o * level, HALF);
        same("gradient of the cell", cell_grad[at], reached * f, 1e-5);
        same("input gate", wide(found[0]), reached * g * i * (1.0 - i), HALF);
        same("forget gate", wide(found[cells]), reached * before[at] * f * (1.0 - f), HALF);
        same("candidate", wide(found[2 * cells]), reached * i * (1.0 - g * g), HALF);
        same("output gate", wide(found[3 * cells]), come * level * o * (1.0 - o), HALF);
    }
    free(sums), free(output), free(grad), free(sums_grad), free(again);
    free(before), free(after), free(reach), free(cell_grad);
}

/* A whole layer, in parts of its rows, against frames whose recurrent products are made here. */
static void check_layer(void) {
    int64_t frames = 1 + draw(4), rows = 1 + draw(15), cells = 64 * (1 + draw(2)), split = draw(rows + 1);
    int64_t all = rows * cells, mode = omni_float_mode();
    uint16_t *weights = halves(4 * cells * cells, 0.2f), *inputs = halves(frames * 4 * all, 2.0f);
    uint16_t *sums = room(frames * 4 * all, 2), *outputs = room((frames + 1) * all, 2);
    uint16_t *grads = halves(frames * all, 1.0f), *sums_grad = room(frames * 4 * all, 2);
    uint16_t *total = room(4 * all, 2), *output = room(all, 2), *come = room(all, 2);
    uint16_t *expected = room(4 * all, 2);
    uint32_t *packed = room(2 * cells * cells, 4);
    float *levels = room((frames + 1) * all, 4), *cell = room(all, 4), *cell_grad = room(all, 4);
    float *own = room(all, 4);
    for (int64_t i = 0; i < all; i++) outputs[i] = narrow(number()), levels[i] = number();
    memcpy(sums, inputs, sizeof(uint16_t) * (size_t)(frames * 4 * all));
    omni_lstm_pack(cells, (const uint32_t *)weights, packed);
    omni_lstm_layer_forward(frames, rows, 0, split, cells, mode, packed, sums, levels, outputs);
    omni_lstm_layer_forward(frames, rows, split, rows, cells, mode, packed, sums, levels, outputs);
    for (int64_t frame = 0; frame < frames; frame++) {
        for (int64_t at = 0; at < 4 * all; at++) {
            const uint16_t *from = outputs + (frame * rows + at / (4 * cells)) * cells;
            const uint16_t *weight = weights + at % (4 * cells) * cells;
            double sum = wide(inputs[frame * 4 * all + at]);
            for (int64_t i = 0; i < cells; i++) sum += (double)wide(from[i]) * wide(weight[i]);
            same("sums of a layer", wide(sums[frame * 4 * all + at]), sum, HALF);
        }
        omni_lstm_forward(rows, cells, sums + frame * 4 * all, levels + frame * all, cell, output);
        for (int64_t at = 0; at < all; at++) {
            same("cells of a layer", levels[(frame + 1) * all + at], cell[at], 1e-5);
            same("outputs of a layer", wide(outputs[(frame + 1) * all + at]), wide(output[at]), HALF);
        }
    }
    for (int64_t i = 0; i < all; i++) own[i] = cell_grad[i] = number();
    omni_lstm_pack_back(cells, weights, packed);
    omni_lstm_layer_backward(frames, rows, 0, split, cells, mode, packed, sums, levels, grads,
                             cell_grad, sums_grad);
    omni_lstm_layer_backward(frames, rows, split, rows, cells, mode, packed, sums, levels, grads,
                             cell_grad, sums_grad);
    for (int64_t frame = frames - 1; frame >= 0; frame--) {
        for (int64_t at = 0; at < all; at++) {
            double sum = wide(grads[frame * all + at]);
            const uint16_t *later = sums_grad + ((frame + 1) * rows + at / cells) * 4 * cells;
            for (int64_t i = 0; frame + 1 < frames && i < 4 * cells; i++)
                sum += (double)wide(later[i]) * wide(weights[i * cells + at % cells]);
            come[at] = narrow((float)sum);
        }
        omni_lstm_backward(rows, cells, sums + frame * 4 * all, levels + frame * all,
                           levels + (frame + 1) * all, come, own, expected, output);
        for (int64_t at = 0; at < 4 * all; at++)
            same("gradients of a layer", wide(sums_grad[frame * 4 * all + at]), wide(expected[at]),
                 2 * HALF);
    }
    for (int64_t at = 0; at < all; at++) same("first cell", cell_grad[at], own[at], 2 * HALF);
    free(weights), free(inputs), free(sums), free(outputs), free(grads), free(sums_grad), free(total);
    free(output), free(come), free(expected), free(packed), free(levels), free(cell), free(cell_grad);
    free(own);
}

/* Activations of a lattice: rows of one side may lie further apart than they are long. */
static void check_join(void) {
    int64_t rows = 1 + draw(3), frames = 1 + draw(4), nodes = 1 + draw(4), dim = 1 + draw(40);
    int64_t apart = frames * dim + draw(3), other = nodes * dim + draw(3), all = rows * frames * nodes;
    int64_t lefts = (rows - 1) * apart + frames * dim, rights = (rows - 1) * other + nodes * dim;
    float *left = floats(lefts, 2.0f), *right = floats(rights, 2.0f);
    float *left_grad = floats(lefts, 0.0f), *right_grad = floats(rights, 0.0f);
    double *a_grad = calloc((size_t)lefts, sizeof(double)), *b_grad = calloc((size_t)rights, sizeof(double));
    uint16_t *hidden = room(all * dim, 2), *grad = halves(all * dim, 1.0f);
    for (int64_t i = 0; i < lefts; i++) left[i] = expf(2.0f * left[i]);
    for (int64_t i = 0; i < rights; i++) right[i] = expf(2.0f * right[i]);
    omni_join(rows, frames, nodes, dim, left, apart, right, other, hidden);
    omni_join_backward(rows, frames, nodes, dim, grad, hidden, left_grad, apart, right_grad, other);
    for (int64_t at = 0; at < all * dim; at++) {
        int64_t i = at % dim, node = at / dim % nodes, frame = at / dim / nodes % frames;
        int64_t row = at / dim / nodes / frames, a = row * apart + frame * dim + i;
        int64_t b = row * other + node * dim + i;
        double level = wide(hidden[at]), reached = wide(grad[at]) * (1.0 - level * level);
        same("activation", level, tanh(0.5 * log((double)left[a] * right[b])), HALF);
        a_grad[a] += reached, b_grad[b] += reached;
    }
    for (int64_t i = 0; i < lefts; i++) same("gradient of a frame", left_grad[i], a_grad[i], 1e-4);
    for (int64_t i = 0; i < rights; i++) same("gradient of a node", right_grad[i], b_grad[i], 1e-4);
    free(left), free(right), free(left_grad), free(right_grad), free(a_grad), free(b_grad);
    free(hidden), free(grad);
}

/* Logits of nodes to three log-probabilities, and the gradient back in their place. */
static void check_collapse(void) {
    int64_t rows = 1 + draw(3), frames = 1 + draw(3), nodes = 1 + draw(4), vocab = 3 + draw(60);
    int64_t all = rows * frames * nodes;
    uint16_t *logits = halves(all * vocab, 6.0f), *first = room(all * vocab, 2);
    int64_t *labels = room(rows * nodes, sizeof(int64_t));
    float *others = room(vocab + LANES, 4), *lattice = room(3 * all, 4), *grads = floats(3 * all, 1.0f);
    float *bias_grad = floats(vocab, 0.0f);
    double *bias = calloc((size_t)vocab, sizeof(double));
    for (int64_t i = 0; i < rows * nodes; i++) labels[i] = draw(3) ? 1 + draw(vocab - 1) : BLANK;
    memcpy(first, logits, sizeof(uint16_t) * (size_t)(all * vocab));
    omni_collapse(rows, frames, nodes, vocab, logits, labels, BLANK, -1e4f, others, lattice);
    omni_collapse_backward(rows, frames, nodes, vocab, logits, labels, BLANK, grads, others, bias_grad);
    for (int64_t at = 0; at < all; at++) {
        int64_t label = labels[at / nodes / frames * nodes + at % nodes];
        const uint16_t *logit = first + at * vocab;
        double rest = 0.0, norm = 0.0;
        for (int64_t i = 0; i < vocab; i++) {
            norm += exp(wide(logit[i]));
            if (i != label && i != BLANK) rest += exp(wide(logit[i]));
        }
        same("label", lattice[3 * at], label == BLANK ? -1e4 : wide(logit[label]) - log(norm), 1e-5);
        same("blank", lattice[3 * at + 1], wide(logit[BLANK]) - log(norm), 1e-5);
        same("rest", lattice[3 * at + 2], log(rest) - log(norm), 1e-5);
        for (int64_t i = 0; i < vocab; i++) {
            double grad = i == BLANK   ? grads[3 * at + 1]
                          : i == label ? grads[3 * at]
                                       : grads[3 * at + 2] * exp(wide(logit[i])) / rest;
            same("gradient of a logit", wide(logits[at * vocab + i]), grad, HALF);
            bias[i] += grad;
        }
    }
    for (int64_t i = 0; i < vocab; i++) same("gradient of the bias", bias_grad[i], bias[i], 1e-4);
    free(logits), free(first), free(labels), free(others), free(lattice), free(grads), free(bias_grad);
    free(bias);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 20, round;
    for (round = 0; round < rounds; round++) {
        check_frame();
        if (omni_has_pairs()) check_layer();
        check_join();
        check_collapse();
    }
    printf("%d checks, %s whole layers\n", rounds, omni_has_pairs() ? "with" : "without");
    return 0;
}
