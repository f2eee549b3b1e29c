#include "network.hpp"

#include <cmath>
#include <stdexcept>

namespace pcsr {

void NetworkDescription::add_head(const std::string& name, const std::vector<int>& hidden, int outputs) {
    const int channels = hidden.empty() ? outputs : hidden.front();
    heads.push_back(Head{name, hidden, outputs, channels, row});
    row += padded(channels);
}

const float* NetworkDescription::weight(const std::string& name, std::initializer_list<std::int64_t> shape) const {
    const auto found = weights.find(name);
    if (found == weights.end()) throw std::invalid_argument("the weights lack " + name);
    const std::vector<std::int64_t> wanted(shape);
    if (found->second.shape != wanted) throw std::invalid_argument("the weight " + name + " has another shape");
    std::int64_t size = 1;
    for (const std::int64_t side : wanted) size *= side;
    for (std::int64_t i = 0; i < size; ++i) {
        if (!std::isfinite(found->second.data[i])) {
            throw std::invalid_argument("the weight " + name + " has NaN or infinite values");
        }
    }
    return found->second.data;
}

bool NetworkDescription::has(const std::string& name) const { return weights.count(name) != 0; }

int NetworkDescription::option(const std::string& name) const {
    const auto found = options.find(name);
    if (found == options.end()) throw std::invalid_argument("the network has no option " + name);
    return found->second;
}

}  // namespace pcsr
