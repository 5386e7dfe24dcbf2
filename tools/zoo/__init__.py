"""Architectures with known residual connections: detection and deployment held against the truth."""
