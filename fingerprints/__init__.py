"""What a forward pass leaves behind, reduced to evidence: token margins now; activations later."""
