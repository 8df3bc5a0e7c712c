"""What steps and copies cost, fitted to samples: constants with their intervals."""
