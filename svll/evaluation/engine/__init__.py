"""What ranking computes with: kernels, blocks of products, ranks."""
