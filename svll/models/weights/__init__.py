"""Models from files and to files: our own weights, published ones, ONNX."""
