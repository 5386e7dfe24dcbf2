"""The ``laurel`` command line and the measuring programs."""
