"""The operator set ``ai.laurel``, version 1: names and signatures, function bodies, torch counterparts."""
