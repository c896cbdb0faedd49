"""The decoder of an exported directory, in plain PyTorch."""
