"""Deployment of random networks against an independent oracle (``python -m`` this package).

Networks of many operator mixes (:mod:`.blocks`, :mod:`.tails`) are transformed by the public API, get random "trained"
LAuReL tensors (:mod:`.trained`) and are deployed, fused and portable. Every value that the deployed graph shares with
the trained one is compared with a float64 evaluation of the trained graph (:mod:`.oracle`) that shares nothing with
folding and fusing.
"""
