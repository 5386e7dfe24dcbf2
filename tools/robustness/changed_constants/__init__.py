"""How well verification sees: every constant that deployment writes, changed by 1 %, has to be caught."""
