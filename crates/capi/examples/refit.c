// Runs an engine, gives it new weights from a file and from memory, and puts an adapter on it.
//
//     cc refit.c -I crates/capi/include -L target/release -lregraft_capi -o refit
//     ./refit model.rgf tuned.safetensors style
#include <stdio.h>
#include <stdlib.h>

#include "regraft.h"

static void check(RegraftStatus status) {
    if (status != REGRAFT_STATUS_OK) {
        fprintf(stderr, "error %d: %s\n", (int)status, regraft_last_error());
        exit(1);
    }
}

// The sum of the first output on an input of ones.
static double run(const RegraftModel *model) {
    float ones[30];
    for (size_t i = 0; i < 30; i++) {
        ones[i] = 1.0f;
    }
    size_t shape[2] = {3, 10};
    RegraftTensor input = {.dtype = "f32", .shape = shape, .rank = 2, .data = ones, .byte_count = sizeof ones};
    RegraftOutputs *outputs = NULL;
    check(regraft_model_run(model, &input, 1, &outputs));
    RegraftTensor output;
    check(regraft_outputs_get(outputs, 0, &output));
    double sum = 0.0;
    for (size_t i = 0; i < output.byte_count / sizeof(float); i++) {
        sum += ((const float *)output.data)[i];
    }
    regraft_outputs_free(outputs);
    return sum;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: refit MODEL.rgf WEIGHTS ADAPTER\n");
        return 2;
    }
    RegraftModel *model = NULL;
    check(regraft_model_load(argv[1], NULL, 1, &model));
    printf("first %.6f: input %s\n", run(model), regraft_model_input_name(model, 0));

    RegraftRefit done;
    check(regraft_model_refit(model, argv[2], false, &done));
    printf("refitted %.6f: %zu slots in %.1f ms\n", run(model), done.rebuilt_slots, done.milliseconds);

    // One source from memory; the others are kept.
    float zeros[16] = {0};
    size_t sizes[1] = {16};
    RegraftTensor bias = {
        .name = "0.bias", .dtype = "f32", .shape = sizes, .rank = 1, .data = zeros, .byte_count = sizeof zeros};
    check(regraft_model_refit_tensors(model, &bias, 1, true, &done));
    printf("from memory %.6f: %zu source\n", run(model), done.changed_sources);
    check(regraft_model_refit(model, argv[2], false, NULL));

    RegraftAdapter style = {.path = argv[3], .scale = 0.5};
    check(regraft_model_set_adapters(model, &style, 1, NULL));
    printf("adapted %.6f\n", run(model));
    check(regraft_model_set_adapters(model, NULL, 0, NULL));
    printf("without %.6f\n", run(model));

    // A refit that fails changes nothing, and says why.
    RegraftStatus status = regraft_model_refit(model, "missing.safetensors", false, NULL);
    printf("refused %d: %s\n", (int)status, regraft_last_error());
    regraft_model_free(model);
    return 0;
}
