"""The passes that come with the package, each a thin object around the function that does the work.

:mod:`.finding` looks, :mod:`.changing` rewrites, :mod:`.serving` makes a trained model cheap, :mod:`.comparing` checks.
"""
