"""What a model takes, from its `config.json` alone: no weights are read, and nothing here needs PyTorch."""
