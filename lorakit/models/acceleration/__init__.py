"""Speed of a training step: compiled blocks, attention and memory formats that suit the device, CUDA graphs."""
