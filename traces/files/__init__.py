"""Files of any kind: opened, bounded and checked on their way in, and whole or absent on their way out."""
