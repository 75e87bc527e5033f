"""What every program shares: how it starts, how it fails, and how it checks a config."""
