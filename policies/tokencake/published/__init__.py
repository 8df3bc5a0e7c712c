"""The paper's rules, to the constant."""
