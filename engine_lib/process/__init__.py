"""Our own processes: how they start, which messages they exchange, and how they end."""
