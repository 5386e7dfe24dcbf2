"""The importer's operators, one file a family; each registers itself with :mod:`laurel_graph.importer.registry`."""
