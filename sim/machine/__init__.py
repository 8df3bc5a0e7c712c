"""What things cost: machines as presets, as files, and with single settings changed."""
