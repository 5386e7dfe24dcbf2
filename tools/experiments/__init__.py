"""What the variants buy on real data: each module is a program that prints one table.

python -m laurel_graph.tools.experiments.images | sentences | pretraining | overhead
"""
