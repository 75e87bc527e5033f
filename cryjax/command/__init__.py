"""What every program shares: how it starts, how it fails, and how a config is checked."""
