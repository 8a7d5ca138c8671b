"""Device profiles (``*.toml``) and the papers' published figures (``published/*.csv``)."""
