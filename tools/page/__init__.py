"""The page that ``laurel report`` writes: what is known about a model, its drawings, and the template."""
