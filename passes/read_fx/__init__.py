"""From torch modules to the neutral graph view: capture, values, roles."""
