"""Networks and the loading of their weights."""
