// Threads that run a model while another one changes its weights, in C++.
//
//     c++ -std=c++17 serve.cpp -I crates/capi/include -L target/release -lregraft_capi -o serve
//     ./serve model.rgf a.safetensors b.safetensors
#include <array>
#include <atomic>
#include <iostream>
#include <memory>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "regraft.h"

namespace {

void check(RegraftStatus status) {
    if (status != REGRAFT_STATUS_OK) {
        throw std::runtime_error(regraft_last_error());
    }
}

struct Free {
    void operator()(RegraftModel *model) const { regraft_model_free(model); }
    void operator()(RegraftOutputs *outputs) const { regraft_outputs_free(outputs); }
};
using Model = std::unique_ptr<RegraftModel, Free>;
using Outputs = std::unique_ptr<RegraftOutputs, Free>;

Model load(const char *path) {
    RegraftModel *model = nullptr;
    check(regraft_model_load(path, "cpu", 1, &model));
    return Model(model);
}

std::vector<float> run(const RegraftModel *model) {
    std::array<float, 30> ones;
    ones.fill(1.0f);
    const std::array<size_t, 2> shape{3, 10};
    const RegraftTensor input{nullptr, "f32", shape.data(), shape.size(), ones.data(), sizeof ones};
    RegraftOutputs *given = nullptr;
    check(regraft_model_run(model, &input, 1, &given));
    const Outputs outputs(given);
    RegraftTensor output;
    check(regraft_outputs_get(outputs.get(), 0, &output));
    const auto *data = static_cast<const float *>(output.data);
    return std::vector<float>(data, data + output.byte_count / sizeof(float));
}

}  // namespace

int main(int argc, char **argv) try {
    if (argc != 4) {
        std::cerr << "usage: serve MODEL.rgf WEIGHTS_A WEIGHTS_B\n";
        return 2;
    }
    const Model model = load(argv[1]);
    std::set<std::vector<float>> answers;
    for (const char *weights : {argv[3], argv[2]}) {
        check(regraft_model_refit(model.get(), weights, false, nullptr));
        answers.insert(run(model.get()));
    }

    std::atomic<bool> stop{false};
    std::atomic<int> runs{0}, wrong{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < 2; number++) {
        threads.emplace_back([&] {
            while (!stop || runs == 0) {
                wrong += answers.count(run(model.get())) == 0;
                runs++;
            }
        });
    }
    for (int turn = 0; turn < 20; turn++) {
        check(regraft_model_refit(model.get(), argv[2 + turn % 2], false, nullptr));
    }
    stop = true;
    for (auto &thread : threads) {
        thread.join();
    }
    std::cout << "20 refits while " << (runs > 0 ? "requests were answered" : "nothing ran") << ", " << wrong
              << " of them from mixed weights\n";
    return wrong == 0 ? 0 : 1;
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
