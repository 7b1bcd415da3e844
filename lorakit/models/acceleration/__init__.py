"""Speed of a training step: compiled blocks, kernels and memory formats that suit the device, CUDA graphs."""
