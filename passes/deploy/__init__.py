"""Deploys a trained model: the exact forms of a site, their costs, the choice, the file."""
