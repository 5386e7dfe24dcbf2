"""Programs that attack the project: killed commands, damaged files, random networks, changed constants."""
