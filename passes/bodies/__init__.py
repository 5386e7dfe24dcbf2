"""The bodies of If, Loop and Scan, each as a model of its own: run, and held against what stands in its place."""
