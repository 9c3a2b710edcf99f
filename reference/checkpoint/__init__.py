"""What lies in a model directory: tensors, quantized or not, adapters, and the digests that name them."""
