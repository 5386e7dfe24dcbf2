"""Measuring programs: latency of files, models of real size, forms of a site, detection."""
