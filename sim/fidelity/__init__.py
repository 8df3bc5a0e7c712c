"""Live beside simulated: are the decisions the same, and how far apart are the times?"""
