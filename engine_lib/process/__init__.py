"""Our own processes: how they start, what they say to each other, and how they end."""
