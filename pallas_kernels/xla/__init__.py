"""What the XLA implementations of the operators share: tiles, pairs of them, a running softmax."""
