"""What is played to learn what an engine costs: prefills, decoding, both at once, and copies, in many sizes."""
