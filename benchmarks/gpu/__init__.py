"""What measures the GPU kernels wherever a GPU is at hand: ``python -m benchmarks.gpu``."""
