"""Folds α and β into the weights around a site: the system of scales, the rules of operators, the trained joins."""
