// Joins means and squared deviations of two sets.
DEVICE void join(float& n, float& mean, float& dev, float n2, float mean2, float dev2) {
    float total = n + n2;
    if (total == 0.f) return;
    float d = mean2 - mean, part = n2 / total;
    mean += d * part;
    dev += dev2 + d * d * n * part;
    n = total;
}
